"""Passes that quantize one weight at a time, with rows stacked for speed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from compress.kernels.qtensor import NumberFormat, quantize
from compress.passes.core.base import LayerPass
from compress.passes.core.change import Change
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

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        stacks: dict[LinearPass, list[str]] = {}
        for name in weights:
            stacks.setdefault(self.resolved(name), []).append(name)
        done: dict[str, Change] = {}
        for step, names in stacks.items():
            number_format = step.number_format(names[0])
            assert number_format is not None
            together = self.stacks and number_format.rows_apart
            for stack in [names] if together else [[name] for name in names]:
                whole = step.rewrite(torch.cat([weights[name] for name in stack]), stats, number_format)
                done.update(_split(whole, {name: weights[name].shape[0] for name in stack}))
        return done


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
