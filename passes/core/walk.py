"""Hidden states carried through the decoder layers, one layer in memory at a time.

A walk may carry several models side by side over the same rows: the one that is being rewritten and its
untouched teacher, or a candidate and its reference. The first stream is the one that may be rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from compress.passes.core.cache import Watch
from compress.passes.core.flight import Flight, PausePoints
from compress.passes.core.hidden import HiddenStates
from compress.passes.core.memory import return_freed_memory
from compress.passes.core.rows import Rows
from compress.passes.core.skeleton import Skeleton
from compress.passes.core.stats import LinearStats, Statistic
from compress.passes.core.weights import Weights

BATCH_TOKENS = 4096
"""Tokens per forward: enough to keep matrix products efficient, few enough to keep activations small."""


@dataclass(frozen=True)
class Stream:
    """One model on its way: whose weights, where its hidden states lie, who watches what its layers cache."""

    weights: Weights
    hidden: HiddenStates
    watch: Callable[[int], Watch | None] | None = None


@dataclass(frozen=True)
class GroupPlan:
    """A group of linears to be rewritten: where it begins, what statistics it wants, what then happens."""

    first: str
    in_features: int
    kinds: frozenset[type[Statistic]]
    rewrite: Callable[[LinearStats], None]


class Walk:
    """The same rows through the layers of one or more models."""

    def __init__(self, skeleton: Skeleton, rows: Rows, streams: Sequence[Stream]) -> None:
        self.skeleton, self.rows, self.streams = skeleton, rows, streams
        step = max(1, BATCH_TOKENS // rows.length)
        self._batches = [(start, min(start + step, rows.count)) for start in range(0, rows.count, step)]

    def start(self) -> None:
        """Write boundary 0: the embeddings of the rows."""
        for stream in self.streams:
            embed = self.skeleton.front(stream.weights)
            with stream.hidden.write(0) as file:
                for start, stop in self._batches:
                    stream.hidden.append(file, embed(self.rows.batch(start, stop)))

    def layer(self, index: int, modules: Sequence[nn.Module], groups: Sequence[GroupPlan], hold: bool) -> None:
        """All streams through layer `index`, rewriting `groups` of the first stream's module on the way.

        With `hold`, every batch pauses at each group, and one forward does it; else the statistics of all
        groups are gathered in a forward of their own, batch by batch, and a second one carries the rewritten
        layer's outputs on.
        """
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(PausePoints(module.get_submodule(group.first) for group in groups))
            if hold or not groups:
                flights = [self._fly(index, modules, batch) for batch in self._batches]
                self._gather(flights, groups)
            else:
                self._gather_apart(index, modules, groups)
        if not (hold or not groups):
            flights = [self._fly(index, modules, batch) for batch in self._batches]
        self._land(index + 1, flights)

    def carry(self, done: int, commit: Callable[[int], None]) -> None:
        """All streams from boundary `done` to the last, nothing rewritten; `commit` is told each boundary."""
        if done == 0:
            self.start()
        for index in range(done, len(self.skeleton.anatomy.layers)):
            modules = [self.skeleton.layer(index, stream.weights) for stream in self.streams]
            self.layer(index, modules, [], hold=True)
            del modules
            return_freed_memory()
            commit(index + 1)
            self.finish(index + 1)

    def head(self, group: GroupPlan, module: nn.Module, project: Callable[[Tensor], Tensor]) -> None:
        """Gather the statistics of the output projection `module` after the last layer, then rewrite it."""
        stats = LinearStats(group.kinds, group.in_features, self.skeleton.device)
        with PausePoints([module]):
            for batch in self._batches:
                inputs = []
                for stream in self.streams:
                    hidden = self._read(stream, len(self.skeleton.anatomy.layers), batch)
                    inputs.append(Flight(partial(project, hidden)).next())
                self._add(stats, batch, inputs)
        stats.finish()
        group.rewrite(stats)

    def _fly(self, index: int, modules: Sequence[nn.Module], batch: tuple[int, int]) -> list[Flight]:
        def forward(stream: Stream, module: nn.Module) -> Tensor:
            watch = stream.watch(index) if stream.watch else self.skeleton.watch(index, stream.weights)
            call = self.skeleton.call(index, self.rows.batch(*batch), watch)
            return self.skeleton.run(module, self._read(stream, index, batch), call)

        return [Flight(partial(forward, stream, module)) for stream, module in zip(self.streams, modules)]

    def _gather(self, flights: Sequence[Sequence[Flight]], groups: Sequence[GroupPlan]) -> None:
        for group in groups:
            stats = LinearStats(group.kinds, group.in_features, self.skeleton.device)
            for batch, flying in zip(self._batches, flights):
                self._add(stats, batch, [flight.next() for flight in flying])
            stats.finish()
            group.rewrite(stats)

    def _gather_apart(self, index: int, modules: Sequence[nn.Module], groups: Sequence[GroupPlan]) -> None:
        gathered = [LinearStats(group.kinds, group.in_features, self.skeleton.device) for group in groups]
        for batch in self._batches:
            flying = self._fly(index, modules, batch)
            for stats in gathered:
                self._add(stats, batch, [flight.next() for flight in flying])
        for group, stats in zip(groups, gathered):
            stats.finish()
            group.rewrite(stats)

    def _add(self, stats: LinearStats, batch: tuple[int, int], inputs: Sequence[Tensor]) -> None:
        mask = self.rows.batch(*batch).mask
        flat = [x.flatten(0, -2) if mask is None else x[mask.to(x.device)] for x in inputs]
        stats.add(flat[0], flat[1] if len(flat) > 1 else None)

    def _land(self, boundary: int, flights: Sequence[Sequence[Flight]]) -> None:
        for number, stream in enumerate(self.streams):
            with stream.hidden.write(boundary) as file:
                for flying in flights:
                    stream.hidden.append(file, flying[number].next())

    def _read(self, stream: Stream, boundary: int, batch: tuple[int, int]) -> Tensor:
        return stream.hidden.read(boundary, *batch).to(self.skeleton.device)

    def finish(self, boundary: int) -> None:
        """Boundary `boundary` is committed: drop those before it."""
        for stream in self.streams:
            stream.hidden.keep_only(boundary)

    def held_bytes(self, widest: int) -> int:
        """Memory that holds every batch at a group, at most: residual, normed input, widest linear input."""
        return self.rows.ids.numel() * 4 * len(self.streams) * (2 * self.skeleton.width + widest)
