"""Passes that quantize one weight at a time, with rows stacked for speed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.qtensor import NumberFormat, quantize
from compress.passes.core.base import LayerPass
from compress.passes.core.change import Change, stacked
from compress.passes.core.targets import Targets
from compress.passes.forward.linear_stats import LinearStats


class LinearPass(Targets, LayerPass):
    """Quantizes one weight at a time. Authors write `number_format` and `linear`.

    Linears that share input and options are stacked by rows and solved as one matrix: rows are
    independent of each other, and one large solve is faster than several small ones. What is solved apart is divided
    among the processes that share a sweep.
    """

    stacks: ClassVar[bool] = True

    def weighs(self) -> bool:
        return bool(self.needs())

    @abstractmethod
    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        """Quantize weight [out, in] fp32."""

    def masked(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat, kept: Tensor) -> Change:
        """`linear` of a weight that was pruned: only where `kept` [out, in] bool may the result be other than 0.

        What rounds 0 to 0 does that by itself; a solver that moves weights says how.
        """
        return self.linear(weight, stats, number_format)

    def rewrite(
        self, weight: Tensor, stats: LinearStats, number_format: NumberFormat, kept: Tensor | None = None
    ) -> Change:
        """`linear`, or `masked` if some weights were pruned and others `kept`.

        Where statistics are needed and there are none, it rounds to nearest.

        So it is with embeddings, whose inputs are one-hot, and with experts that no calibration token reached.
        """
        if not self.needs() or stats.tokens:
            if kept is not None:
                return self.masked(weight, stats, number_format, kept)
            return self.linear(weight, stats, number_format)
        rounded = quantize(weight, number_format, number_format.fit(weight))
        return Change(rounded, unreached=stats.gathered, notes={"fallback": "rtn"})

    def linear_effort(self, shape: tuple[int, ...], number_format: NumberFormat) -> Effort:
        """What `linear` takes for a weight of this shape [out, in]; the pass was resolved for it."""
        return number_format.effort(shape, searched=False)

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        if self.row_parts() and stats.parts:
            return {
                name: self._in_parts(name, weight, stats.parts[name], stats.kept.get(name))
                for name, weight in weights.items()
            }
        stacks = list(self._stacks(weights))

        def solved(step: Self, number_format: NumberFormat, stack: Sequence[str]) -> Change:
            kept = _kept([weights[name] for name in stack], [stats.kept.get(name) for name in stack])
            return step.rewrite(torch.cat([weights[name] for name in stack]), stats, number_format, kept)

        done: dict[str, Change] = {}
        for (_, _, stack), whole in zip(stacks, stats.share.each([partial(solved, *each) for each in stacks])):
            done.update(_split(whole, {name: weights[name].shape[0] for name in stack}))
        return done

    def effort(self, weights: Mapping[str, tuple[int, ...]]) -> Effort:
        total, parts = Effort(), self.row_parts()
        if parts:
            for name, (rows, columns) in weights.items():
                step, number_format = self._alone(name)
                total += step.linear_effort((max(1, rows // parts), columns), number_format) * parts
            return total
        for step, number_format, stack in self._stacks(weights):
            rows, columns = sum(weights[name][0] for name in stack), weights[stack[0]][1]
            total += step.linear_effort((rows, columns), number_format)
        return total

    def _stacks(self, names: Iterable[str]) -> Iterator[tuple[Self, NumberFormat, list[str]]]:
        """The modules that are solved as one: this pass as it is for them, their number format, their names."""
        stacks: dict[Self, list[str]] = {}
        for name in names:
            stacks.setdefault(self.resolved(name), []).append(name)
        for step, found in stacks.items():
            _, number_format = self._alone(found[0])
            together = self.stacks and number_format.rows_apart
            yield from ((step, number_format, stack) for stack in ([found] if together else [[name] for name in found]))

    def _alone(self, name: str) -> tuple[Self, NumberFormat]:
        """This pass as it is for one module, and the module's number format."""
        step = self.resolved(name)
        number_format = step.number_format(name)
        assert number_format is not None
        return step, number_format

    def _in_parts(self, name: str, weight: Tensor, parts: Sequence[LinearStats], kept: Tensor | None) -> Change:
        """One weight, each part of its rows with statistics of its own."""
        step, number_format = self._alone(name)
        masks = [None] * len(parts) if kept is None else kept.tensor_split(len(parts))
        return stacked([
            step.rewrite(rows, stats, number_format, mask)
            for rows, stats, mask in zip(weight.tensor_split(len(parts)), parts, masks)
        ])  # fmt: skip


def _kept(weights: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor | None:
    """The masks of stacked weights as one; all stays of those that have none. None if none has one."""
    if all(mask is None for mask in masks):
        return None
    whole = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    return torch.cat([every if mask is None else mask for every, mask in zip(whole, masks)])


def _split(whole: Change, rows: Mapping[str, int]) -> dict[str, Change]:
    """Cut a stacked result back into its linears; one that stands alone may have parameters that span rows."""
    if len(rows) == 1:
        return dict.fromkeys(rows, whole)
    parts: dict[str, Change] = {}
    start = 0
    for name, count in rows.items():
        parts[name] = whole.rows(slice(start, start + count))
        start += count
    return parts
