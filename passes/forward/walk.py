"""Hidden states carried through the decoder layers, one layer in memory at a time.

A walk may carry several models side by side over the same sequences: the one that is being rewritten and its
untouched teacher, or a candidate and its reference. The first stream is the one that may be rewritten.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.kernels.fallbacks import count
from compress.kernels.half import halved
from compress.kernels.laps import lap
from compress.kernels.later import Later
from compress.kernels.share import WHOLE, Share
from compress.passes.forward.cost.flow import FASTEST, Flow
from compress.passes.forward.heap import return_freed_memory
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.pauses import Gathering, Pause
from compress.passes.model.experts import abreast
from compress.passes.model.flight import Flight, Formation, PausePoints, dropped, dropped_on_error
from compress.passes.model.sequences import Sequences
from compress.passes.model.watch import Watch
from compress.passes.model.weights import Weights

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton


@dataclass(frozen=True)
class Stream:
    """One model on its way: whose weights, where its hidden states lie, who watches what its layers cache."""

    weights: Weights
    hidden: HiddenStates
    watch: Callable[[int, Sequences], Watch | None] | None = None


class Walk:
    """The same sequences through the layers of one or more models; `tell` hears what is being done, `flow` says how.

    With `half` statistics round their inputs to bfloat16 (kernels/half.py), and so do linears of a model alone: what
    sets two apart is as small as what that takes. Processes that `share` it run some batches, and know all statistics.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        sequences: Sequences,
        streams: Sequence[Stream],
        tell: Callable[[str], None] = lambda label: None,
        half: bool = False,
        flow: Flow = FASTEST,
        share: Share = WHOLE,
    ) -> None:
        self.half, self.flow, self.share = half, flow, share
        self.skeleton, self.sequences, self.streams = skeleton, sequences, streams
        self._tell = tell
        self.batches = flow.batches(sequences.count, sequences.length)
        """(start, stop) of the sequences that run through a layer together, and whose statistics are added at once."""
        self._gathering = Gathering(sequences, skeleton.device, half)
        self._parts = 1
        self._ahead: tuple[int, Later[list[nn.Module]]] | None = None

    @property
    def _shares(self) -> list[range]:
        """See `Flow.shares`."""
        return self.flow.shares(len(self.batches))

    @property
    def _mine(self) -> list[int]:
        """The batches that this process runs, by number."""
        return [number for part, numbers in enumerate(self._shares) if self.share.mine(part) for number in numbers]

    @property
    def may_shrink(self) -> bool:
        """Whether batches can be run in smaller parts than they are."""
        return self._parts < max(stop - start for start, stop in self.batches)

    def shrink(self) -> None:
        """From now on run batches in smaller parts, for memory ran out: of statistics sums are taken as before.

        All that share the walk do.
        """
        self._parts *= 2
        count(f"memory ran out, and each batch was run in {self._parts} parts")
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def start(self) -> None:
        """Write boundary 0: the embeddings of the sequences. One process does."""
        for stream in self.streams if self.share.main else ():
            self._tell("loading the embedding")
            embed = self.skeleton.front(stream.weights)
            with stream.hidden.write(0) as file:
                for number, batch in enumerate(self.batches):
                    self._tell_batch("embedding the sequences", number)
                    stream.hidden.append(file, embed(self.sequences.batch(*batch)))
            del embed  # before the next one is loaded
        self.share.wait()

    def modules(self, index: int, ahead: bool = False) -> list[nn.Module]:
        """Layer `index` of every stream, filled; with `ahead` the next one is read meanwhile, for the next call."""
        self._tell(f"loading {self.skeleton.anatomy.layers[index].name}")
        with lap("read", nbytes=4 * self.skeleton.weights_in(index) * len(self.streams)):
            found = self._read_before(index) or self._filled(index)
        if ahead and self._ahead is None and index + 1 < len(self.skeleton.anatomy.layers):
            self._ahead = index + 1, Later(partial(self._filled, index + 1))
        return found

    def _read_before(self, index: int) -> list[nn.Module]:
        """Layer `index`, if it was read ahead; one that is wanted after it is kept."""
        known, later = self._ahead or (index, None)
        if known != index or later is None:
            return []
        self._ahead = None
        return later.result()

    def _filled(self, index: int) -> list[nn.Module]:
        with torch.no_grad():
            return [self.skeleton.layer(index, stream.weights) for stream in self.streams]

    def layer(
        self, index: int, modules: Sequence[nn.Module], pauses: Sequence[Pause], hold: bool, in_turn: bool = False
    ) -> None:
        """All streams through layer `index`, rewriting `pauses` of the first stream's module on the way.

        With `hold`, every batch pauses at each, and one forward does it; else the statistics of all
        pauses are gathered in a forward of their own, batch by batch (`in_turn`: of each, after those before it were
        rewritten), and a second one carries the rewritten layer's outputs on.
        """
        linears = (each for module in modules for each in self.skeleton.linears_in(index, module))
        with halved(linears) if self.half and len(modules) == 1 else nullcontext():
            self._through(index, modules, pauses, hold, in_turn)
        with lap("forward") as forward:
            mine = sum(stop - start for start, stop in (self.batches[number] for number in self._mine))
            tokens = mine * self.sequences.length * len(self.streams)
            forward.flops += 2 * tokens * self.skeleton.weights_in(index) * (1 if hold or not pauses else 2)

    def _through(
        self, index: int, modules: Sequence[nn.Module], pauses: Sequence[Pause], hold: bool, in_turn: bool
    ) -> None:
        """See `layer`."""
        with ExitStack() as stack:
            for module in modules:
                points = stack.enter_context(PausePoints(module.get_submodule(pause.first) for pause in pauses))
                for taker in {pause.residual for pause in pauses if pause.residual is not None}:
                    points.note(taker, module.get_submodule(taker))
            if hold or not pauses:
                firsts = [pause.first for pause in pauses]
                groups, *_ = [abreast(module, firsts, self.share.count) for module in modules]
                flights = self._fly_all(index, modules)
                with dropped_on_error(list(flights.values())):
                    for group in groups:
                        self._gather(flights, [pauses[at] for at in group])
            else:
                for number, together in enumerate([[pause] for pause in pauses] if in_turn else [pauses]):
                    self._gather_apart(index, modules, together, passed=number)
        if not (hold or not pauses):
            flights = self._fly_all(index, modules)
        with dropped(list(flights.values())):
            self._land(index + 1, flights)

    def carry(
        self,
        done: int,
        commit: Callable[[int], None],
        pauses: Callable[[int, nn.Module], Sequence[Pause]] = lambda index, module: (),
        hold: bool = True,
        keep: bool = False,
        in_turn: bool = False,
    ) -> None:
        """All streams from boundary `done` to the last; `commit` is told each boundary.

        `pauses` are what statistics are gathered of, by a layer's index and the first stream's module. With `keep`
        no boundary is deleted; `hold` and `in_turn` are those of `layer`. If memory runs out where nothing is gathered,
        batches shrink.
        """
        if done == 0:
            self.start()
        for index in range(done, len(self.skeleton.anatomy.layers)):
            modules = self.modules(index)
            found = pauses(index, modules[0])
            while not self._fits(partial(self.layer, index, modules, found, hold, in_turn), redone=not found):
                self.shrink()
            del modules, found
            return_freed_memory()
            commit(index + 1)
            if not keep and self.share.main:
                self.finish(index + 1)

    def _fits(self, work: Callable[[], None], redone: bool) -> bool:
        """Do `work`, or say that it is to be done again in smaller parts, if it may be `redone`."""
        try:
            with self.share.together():
                work()
        except torch.OutOfMemoryError:
            if not (redone and self.may_shrink):
                raise
            return False
        return True

    def head(self, pause: Pause, module: nn.Module, project: Callable[[Tensor], Tensor]) -> None:
        """Gather the statistics of the output projection `module` after the last layer, then rewrite it."""

        def gather(number: int, stats: Sequence[LinearStats]) -> None:
            boundary, batch = len(self.skeleton.anatomy.layers), self.batches[number]
            hidden = [self._read(stream, boundary, batch) for stream in self.streams]
            flying = [Flight(partial(project, x)) for x in hidden]
            self._gathering.add(stats[0], batch, [Formation([(flight, 0)]) for flight in flying], pause)
            for flight in flying:
                flight.drop()

        with PausePoints([module]):
            found = self._summed([pause], gather, "running to the head")
        self._rewrite([pause], WHOLE, found)

    def _fly_all(self, index: int, modules: Sequence[nn.Module]) -> dict[int, list[Formation]]:
        """The batches that this process runs, by number, on their way."""
        return {number: self._fly(index, modules, self.batches[number]) for number in self._mine}

    def _fly(self, index: int, modules: Sequence[nn.Module], batch: tuple[int, int]) -> list[Formation]:
        def forward(stream: Stream, module: nn.Module, part: tuple[int, int]) -> Tensor:
            sequences = self.sequences.batch(*part)
            watch = stream.watch(index, sequences) if stream.watch else self.skeleton.watch(index, stream.weights)
            call = self.skeleton.call(index, sequences, watch)
            return self.skeleton.run(module, self._read(stream, index, part), call)

        parts = [(part, (part[1] - part[0]) * self.sequences.length) for part in self._cut(*batch)]
        return [
            Formation([(Flight(partial(forward, stream, module, part)), tokens) for part, tokens in parts])
            for stream, module in zip(self.streams, modules)
        ]

    def _cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts in which a batch runs."""
        step = -(-(stop - start) // self._parts)
        return [(first, min(first + step, stop)) for first in range(start, stop, step)]

    def _gather(self, flights: Mapping[int, Sequence[Formation]], pauses: Sequence[Pause]) -> None:
        """Statistics of `pauses`, which are met before any of them is computed: one process rewrites one of them."""

        def gather(number: int, gathered: Sequence[LinearStats]) -> None:
            for stats, pause in zip(gathered, pauses):
                self._gathering.add(stats, self.batches[number], flights[number], pause)

        found = self._summed(pauses, gather, f"running to {pauses[0].first}")
        self._rewrite(pauses, self.share if len(pauses) > 1 else WHOLE, found)

    def _rewrite(self, pauses: Sequence[Pause], share: Share, found: Sequence[LinearStats]) -> None:
        """Rewrite `pauses` by the statistics `found`, each in one process of those that `share` them."""
        self._tell(f"rewriting {pauses[0].first}")
        for stats in found:
            stats.share = self.share if share is WHOLE else WHOLE
        works = [partial(pause.rewrite, stats) for pause, stats in zip(pauses, found)]
        for pause, made in zip(pauses, share.each(works)):
            pause.take(made)

    def _gather_apart(self, index: int, modules: Sequence[nn.Module], pauses: Sequence[Pause], passed: int) -> None:
        """Statistics of `pauses`, which so many others come before."""

        def gather(number: int, gathered: Sequence[LinearStats]) -> None:
            flying = self._fly(index, modules, self.batches[number])
            with dropped([flying]):
                for flight in flying * passed:
                    flight.next()
                for stats, pause in zip(gathered, pauses):
                    self._gathering.add(stats, self.batches[number], flying, pause)

        for pause, stats in zip(pauses, self._summed(pauses, gather, "gathering statistics")):
            self._rewrite([pause], WHOLE, [stats])

    def _summed(
        self, pauses: Sequence[Pause], gather: Callable[[int, Sequence[LinearStats]], None], doing: str
    ) -> list[LinearStats]:
        """The statistics of `pauses`, to which `gather` adds those of a batch, by its number.

        Each share of the batches is summed up from nothing, batch by batch, and these sums are added up in the order
        of shares: whoever does a share, the same numbers in the same order. Three sums at most are there at once.
        """
        whole: list[LinearStats] = []
        shares = self._shares
        for first in range(0, len(shares), self.share.count):
            together = shares[first : first + self.share.count]
            mine = [pause.statistics(self.skeleton.device) for pause in pauses]
            for number in together[self.share.index] if self.share.index < len(together) else ():
                self._tell_batch(doing, number)
                gather(number, mine)
            for owner in range(len(together)):
                part = self.share.given(mine, owner)
                for stats, more in zip(whole, part):
                    stats.merge(more)
                whole = whole or part
        for stats in whole:
            stats.finish()
        return whole

    def _tell_batch(self, doing: str, number: int) -> None:
        self._tell(f"{doing}, batch {number + 1} of {len(self.batches)}")

    def _land(self, boundary: int, flights: Mapping[int, Sequence[Formation]]) -> None:
        """All write into one file, which one of them makes and gives its name."""
        for at, stream in enumerate(self.streams):
            with stream.hidden.write(boundary) if self.share.main else nullcontext() as file:
                self.share.wait()
                with self.share.together():  # whoever is short leaves it to the others until they know
                    for number, flying in flights.items():
                        self._tell_batch("running the layer", number)
                        stream.hidden.place(boundary, self.batches[number][0], flying[at].next(), file)
        self.share.wait()

    def _read(self, stream: Stream, boundary: int, batch: tuple[int, int]) -> Tensor:
        return stream.hidden.read(boundary, *batch).to(self.skeleton.device)

    def finish(self, boundary: int) -> None:
        """Boundary `boundary` is committed: drop those before it."""
        for stream in self.streams:
            stream.hidden.keep_only(boundary)
