"""Hidden states carried through the decoder layers, one layer in memory at a time.

A walk may carry several models side by side over the same sequences: the one that is being rewritten and its
untouched teacher, or a candidate and its reference. The first stream is the one that may be rewritten.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from compress.kernels.fallbacks import count
from compress.kernels.half import half_products, halved
from compress.kernels.laps import lap
from compress.kernels.later import Later
from compress.passes.forward.cost import FASTEST, Flow
from compress.passes.forward.heap import return_freed_memory
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.statistics import Guide, LinearStats, Statistic
from compress.passes.model.flight import Flight, Formation, PausePoints, dropped, dropped_on_error
from compress.passes.model.sequences import Sequences
from compress.passes.model.watch import Watch
from compress.passes.model.weights import Weights

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton

T = TypeVar("T")


@dataclass(frozen=True)
class Stream:
    """One model on its way: whose weights, where its hidden states lie, who watches what its layers cache."""

    weights: Weights
    hidden: HiddenStates
    watch: Callable[[int, Sequences], Watch | None] | None = None


@dataclass(frozen=True)
class Pause:
    """Siblings, at which the forward pauses: where they begin, what statistics they want, what then happens.

    `residual` is the module within the layer whose input their output is added to, if that is wanted. `guide` is
    what tokens count for, where they do not count alike.
    """

    first: str
    in_features: int
    kinds: frozenset[type[Statistic]]
    rewrite: Callable[[LinearStats], None]
    residual: str | None = None
    guide: Guide | None = None

    def statistics(self, device: torch.device) -> LinearStats:
        """Those that it wants, of no token yet."""
        return LinearStats(self.kinds, self.in_features, device, self.guide)


class Walk:
    """The same sequences through the layers of one or more models; `tell` hears what is being done, `flow` says how.

    With `half` statistics round their inputs to bfloat16 (kernels/half.py), and so do the linears of a model that walks
    alone: what sets two apart is as small as what rounding takes away.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        sequences: Sequences,
        streams: Sequence[Stream],
        tell: Callable[[str], None] = lambda label: None,
        half: bool = False,
        flow: Flow = FASTEST,
    ) -> None:
        self.half, self.flow = half, flow
        self.skeleton, self.sequences, self.streams = skeleton, sequences, streams
        self._tell = tell
        step = max(1, flow.tokens // sequences.length)
        self.batches = [(start, min(start + step, sequences.count)) for start in range(0, sequences.count, step)]
        """(start, stop) of the sequences that run through a layer together, and of which statistics are summed up."""
        self._parts = 1
        self._ahead: tuple[int, Later[list[nn.Module]]] | None = None

    @property
    def may_shrink(self) -> bool:
        """Whether batches can be run in smaller parts than they are."""
        return self._parts < max(stop - start for start, stop in self.batches)

    def shrink(self) -> None:
        """From now on run batches in smaller parts, for memory ran out: of statistics sums are taken as before."""
        self._parts *= 2
        count(f"memory ran out, and each batch was run in {self._parts} parts")
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def start(self) -> None:
        """Write boundary 0: the embeddings of the sequences."""
        for stream in self.streams:
            self._tell("loading the embedding")
            embed = self.skeleton.front(stream.weights)
            with stream.hidden.write(0) as file:
                for batch in self._told("embedding the sequences", self.batches):
                    stream.hidden.append(file, embed(self.sequences.batch(*batch)))
            del embed  # before the next one is loaded

    def modules(self, index: int, ahead: bool = False) -> list[nn.Module]:
        """Layer `index` of every stream, filled; with `ahead` the next one is read meanwhile, for the next call."""
        self._tell(f"loading {self.skeleton.anatomy.layers[index].name}")
        with lap("read", nbytes=4 * self._weights_of(index) * len(self.streams)):
            (known, later), self._ahead = self._ahead or (None, None), None
            found = later.result() if later is not None and known == index else self._filled(index)
        if ahead and index + 1 < len(self.skeleton.anatomy.layers):
            self._ahead = index + 1, Later(partial(self._filled, index + 1))
        return found

    def _filled(self, index: int) -> list[nn.Module]:
        with torch.no_grad():
            return [self.skeleton.layer(index, stream.weights) for stream in self.streams]

    def _weights_of(self, index: int) -> int:
        """How many a layer's linears have."""
        linears = (name for siblings in self.skeleton.anatomy.layers[index].siblings for name in siblings)
        return sum(prod(self.skeleton.shapes[f"{name}.weight"]) for name in linears)

    def layer(
        self, index: int, modules: Sequence[nn.Module], pauses: Sequence[Pause], hold: bool, in_turn: bool = False
    ) -> None:
        """All streams through layer `index`, rewriting `pauses` of the first stream's module on the way.

        With `hold`, every batch pauses at each, and one forward does it; else the statistics of all
        pauses are gathered in a forward of their own, batch by batch (`in_turn`: of each, after those before it were
        rewritten), and a second one carries the rewritten layer's outputs on.
        """
        alone = len(self.streams) == 1
        with halved(self._linears(index, modules)) if self.half and alone else nullcontext():
            self._through(index, modules, pauses, hold, in_turn)
        with lap("forward") as forward:
            tokens = self.sequences.count * self.sequences.length * len(self.streams)
            forward.flops += 2 * tokens * self._weights_of(index) * (1 if hold or not pauses else 2)

    def _linears(self, index: int, modules: Sequence[nn.Module]) -> Iterator[nn.Linear]:
        """Those of a layer, of every stream."""
        for module in modules:
            found = (module.get_submodule(name) for name in self.skeleton.anatomy.layers[index].modules.values())
            yield from (linear for linear in found if isinstance(linear, nn.Linear))

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
                flights = [self._fly(index, modules, batch) for batch in self.batches]
                with dropped_on_error(flights):
                    self._gather(flights, pauses)
            else:
                for number, together in enumerate([[pause] for pause in pauses] if in_turn else [pauses]):
                    self._gather_apart(index, modules, together, passed=number)
        if not (hold or not pauses):
            flights = [self._fly(index, modules, batch) for batch in self.batches]
        with dropped(flights):
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
            if not keep:
                self.finish(index + 1)

    def _fits(self, work: Callable[[], None], redone: bool) -> bool:
        """Do `work`, or say that it is to be done again in smaller parts, if it may be `redone`."""
        try:
            work()
        except torch.OutOfMemoryError:
            if not (redone and self.may_shrink):
                raise
            return False
        return True

    def head(self, pause: Pause, module: nn.Module, project: Callable[[Tensor], Tensor]) -> None:
        """Gather the statistics of the output projection `module` after the last layer, then rewrite it."""
        stats = pause.statistics(self.skeleton.device)
        with PausePoints([module]):
            for batch in self._told("running to the head", self.batches):
                boundary = len(self.skeleton.anatomy.layers)
                hidden = [self._read(stream, boundary, batch) for stream in self.streams]
                flying = [Flight(partial(project, x)) for x in hidden]
                self._add(stats, batch, [Formation([(flight, 0)]) for flight in flying], pause)
                for flight in flying:
                    flight.drop()
        stats.finish()
        self._tell("rewriting the head")
        pause.rewrite(stats)

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

    def _gather(self, flights: Sequence[Sequence[Formation]], pauses: Sequence[Pause]) -> None:
        for pause in pauses:
            stats = pause.statistics(self.skeleton.device)
            for batch, flying in self._told(f"running to {pause.first}", list(zip(self.batches, flights))):
                self._add(stats, batch, flying, pause)
            stats.finish()
            self._tell(f"rewriting {pause.first}")
            pause.rewrite(stats)

    def _gather_apart(self, index: int, modules: Sequence[nn.Module], pauses: Sequence[Pause], passed: int) -> None:
        """Statistics of `pauses`, which so many others come before."""
        gathered = [pause.statistics(self.skeleton.device) for pause in pauses]
        for batch in self._told("gathering statistics", self.batches):
            flying = self._fly(index, modules, batch)
            with dropped([flying]):
                for flight in flying * passed:
                    flight.next()
                for stats, pause in zip(gathered, pauses):
                    self._add(stats, batch, flying, pause)
        for pause, stats in zip(pauses, gathered):
            stats.finish()
            self._tell(f"rewriting {pause.first}")
            pause.rewrite(stats)

    def _told(self, doing: str, batches: Sequence[T]) -> Iterator[T]:
        """What there is of each batch in turn, each told."""
        for number, batch in enumerate(batches, start=1):
            self._tell(f"{doing}, batch {number} of {len(batches)}")
            yield batch

    def _add(self, stats: LinearStats, batch: tuple[int, int], flying: Sequence[Formation], pause: Pause) -> None:
        """Fly on to the next siblings and feed its inputs to `stats`, without padding."""
        arrived = [self._arrival(flight, batch) for flight in flying]
        (x, tokens), teacher = arrived[0], arrived[1:]
        gap = None
        if pause.residual is not None and teacher:
            mine, other = (self._real(flight.note(pause.residual).flatten(0, -2), batch) for flight in flying)
            gap = other - mine
        weights = self._weights(pause.guide, batch, tokens) if pause.guide else None
        with half_products(x.shape[1], self.half):
            stats.add(x, _aligned(x, tokens, *teacher[0]) if teacher else None, gap, weights)

    def _weights(self, guide: Guide, batch: tuple[int, int], tokens: Tensor | None) -> Mapping[str, Tensor]:
        """What the tokens of a batch count for [tokens, parts], by module: all that are real, or those given."""
        found = {}
        for name, whole in guide.weights.items():
            weights = whole[slice(*batch)].flatten(0, 1).to(self.skeleton.device)
            found[name] = self._real(weights, batch) if tokens is None else weights[tokens]
        return found

    def _real(self, x: Tensor, batch: tuple[int, int]) -> Tensor:
        """x [sequences · length, width] without padding."""
        mask = self.sequences.batch(*batch).mask
        return x if mask is None else x[mask.flatten().to(x.device)]

    def _arrival(self, flight: Formation, batch: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The input [tokens, in] of the next siblings, and which tokens of the batch these are (None: all)."""
        x = flight.next().flatten(0, -2)
        mask, tokens = self.sequences.batch(*batch).mask, flight.tokens
        if mask is not None:
            real = mask.flatten().to(x.device)
            real = real if tokens is None else real[tokens]
            x, tokens = x[real], None if tokens is None else tokens[real]
        return x, tokens

    def _land(self, boundary: int, flights: Sequence[Sequence[Formation]]) -> None:
        for number, stream in enumerate(self.streams):
            with stream.hidden.write(boundary) as file:
                for flying in self._told("running the layer", flights):
                    stream.hidden.append(file, flying[number].next())

    def _read(self, stream: Stream, boundary: int, batch: tuple[int, int]) -> Tensor:
        return stream.hidden.read(boundary, *batch).to(self.skeleton.device)

    def finish(self, boundary: int) -> None:
        """Boundary `boundary` is committed: drop those before it."""
        for stream in self.streams:
            stream.hidden.keep_only(boundary)


def _aligned(x: Tensor, tokens: Tensor | None, teacher_x: Tensor, teacher_tokens: Tensor | None) -> Tensor:
    """The teacher's input [tokens, in] for the tokens of `x`; a token that it routes elsewhere counts as not moved."""
    if tokens is None or teacher_tokens is None:
        return teacher_x
    aligned = x.clone()
    mine, same = torch.where(tokens[:, None] == teacher_tokens)
    aligned[mine] = teacher_x[same]
    return aligned
