"""GPTQ (arXiv 2210.17323): round column by column and let the columns still open make up for each error.

Groups are static and columns are visited in the order of falling diag(H), so files need no reordering.
`correct` solves for a target that makes up for what earlier layers lost (relative: GPTAQ, arXiv 2504.02692).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from compress.kernels.correct import corrected_target
from compress.kernels.gptq import gptq_solve
from compress.kernels.qtensor import NumberFormat, quantize
from compress.passes.core.base import Rewritten
from compress.passes.core.int_options import IntOptions
from compress.passes.core.stats import Drift, Hessian, LinearStats, Statistic


class GPTQ(IntOptions):
    """Choose codes by second-order information of the calibration data. The standard for 4 bits and below."""

    damp: float = Field(0.01, gt=0, le=1, description="added to the Hessian's diagonal, as a part of its mean")
    act_order: bool = Field(True, description="visit columns by falling activation energy (costs nothing later)")
    search: bool = Field(True, description="search scales (of either sign) for the least weighted error")
    correct: bool = Field(False, description="aim at the untouched model's outputs; runs the untouched model beside")

    def needs(self) -> frozenset[type[Statistic]]:
        return frozenset({Hessian, Drift}) if self.correct else frozenset({Hessian})

    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Rewritten:
        if Hessian not in stats:  # an embedding: its inputs are one-hot, and every row stands for itself
            return Rewritten(quantize(weight, number_format, number_format.fit(weight)), {"fallback": "rtn"})
        hessian = stats[Hessian].matrix
        target = corrected_target(weight, stats[Drift].matrix, hessian) if Drift in stats else weight
        params = None if self.search else number_format.fit(target)
        quantized, report = gptq_solve(
            target, hessian, number_format, damp=self.damp, act_order=self.act_order, params=params
        )
        return Rewritten(quantized, {"damp": report.damp, "fallback": "rtn" if report.fallback else ""})
