"""Passes that quantize one weight at a time, with rows stacked for speed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.qtensor import NumberFormat, quantize
from compress.passes.core.base import LayerPass
from compress.passes.core.change import Change, stacked
from compress.passes.core.targets import Targets
from compress.passes.forward.statistics import LinearStats


class LinearPass(Targets, LayerPass):
    """Quantizes one weight at a time. Authors write `number_format` and `linear`.

    Linears that share input and options are stacked by rows and solved as one matrix: rows are
    independent of each other, and one large solve is faster than several small ones.
    """

    stacks: ClassVar[bool] = True

    @abstractmethod
    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        """Quantize weight [out, in] fp32."""

    def rewrite(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        """`linear`, or round to nearest where statistics are needed and there are none.

        So it is with embeddings, whose inputs are one-hot, and with experts that no calibration token reached.
        """
        if not self.needs() or stats.tokens:
            return self.linear(weight, stats, number_format)
        rounded = quantize(weight, number_format, number_format.fit(weight))
        return Change(rounded, unreached=stats.gathered, notes={"fallback": "rtn"})

    def linear_effort(self, shape: tuple[int, ...], number_format: NumberFormat) -> Effort:
        """What `linear` takes for a weight of this shape [out, in]; the pass was resolved for it."""
        return number_format.effort(shape, searched=False)

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        if self.row_parts() and stats.parts:
            return {name: self._in_parts(name, weight, stats.parts[name]) for name, weight in weights.items()}
        done: dict[str, Change] = {}
        for step, number_format, stack in self._stacks(weights):
            whole = step.rewrite(torch.cat([weights[name] for name in stack]), stats, number_format)
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

    def _in_parts(self, name: str, weight: Tensor, parts: Sequence[LinearStats]) -> Change:
        """One weight, each part of its rows with statistics of its own."""
        step, number_format = self._alone(name)
        return stacked([
            step.rewrite(rows, stats, number_format) for rows, stats in zip(weight.tensor_split(len(parts)), parts)
        ])  # fmt: skip


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
