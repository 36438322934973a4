"""GPTQ (arXiv 2210.17323): round column by column and let the columns still open make up for each error.

Groups are static and columns are visited in the order of falling diag(H), so files need no reordering.
`correct` solves for a target that makes up for what earlier layers lost (relative: GPTAQ, arXiv 2504.02692).
`end_loss` weights every token by how much the end loss feels an error there (GuidedQuant, arXiv 2505.07004).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.formats.options import PerTensor, plain, resolve
from compress.kernels.effort import Effort
from compress.kernels.measure.hessian import shrunk
from compress.kernels.qtensor import NumberFormat
from compress.kernels.solve.correct import correct_effort, corrected_target
from compress.kernels.solve.gptq import gptq_solve, solve_effort
from compress.kernels.solve.kept import solve_kept
from compress.kernels.solve.tune import tune, tune_effort
from compress.passes.core.change import Change
from compress.passes.core.linear import LinearPass
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Drift, Hessian, Statistic
from compress.passes.model.anatomy import Anatomy
from compress.passes.options.any_format import FormatOptions

Damp = Annotated[float, Field(gt=0, le=1)]
Shrinkage = Annotated[float, Field(ge=0, le=1)]


class GPTQ(FormatOptions, LinearPass):
    """Choose codes by second-order information of the calibration data. The standard for 4 bits and below."""

    damp: PerTensor[Damp] = Field(0.01, description="added to the Hessian's diagonal, as a part of its mean")
    shrinkage: PerTensor[Shrinkage] = Field(
        0.0,
        description="by which part the Hessian's entries off its diagonal are made smaller: they are chance in part",
    )
    act_order: PerTensor[bool] = Field(True, description="visit columns by falling activation energy")
    search: PerTensor[bool] = Field(True, description="search scales (of either sign) for the least weighted error")
    correct: PerTensor[bool] = Field(False, description="aim at the untouched model's outputs; runs it beside")
    tune: PerTensor[bool] = Field(False, description="then fit the scales to the codes and revisit every code, twice")

    end_loss: bool = Field(
        False, description="weight tokens by the end loss: one backward before; hidden states of all layers on disk"
    )
    end_loss_parts: int = Field(
        1, ge=1, le=4, description="parts of a weight's rows, each with token weights and a Hessian of its own"
    )
    end_loss_share: float = Field(
        1.0, gt=0, le=1, description="how much of the weights to take: less keeps few heavy tokens from deciding alone"
    )

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        for name in sorted(self.targets(anatomy)) if self.row_parts() > 1 else ():
            if (number_format := self.number_format(name)) and not number_format.rows_apart:
                raise RefusedError(
                    f"gptq: {name}: {number_format.name} has parameters for many rows at once, and rows are to be "
                    f"solved in {self.end_loss_parts} parts",
                    "say end_loss_parts: 1, or choose another number format",
                )
        self._refuse_correcting_twice(model, anatomy)
        return super().plan(model, anatomy)

    def _refuse_correcting_twice(self, model: ModelSpec, anatomy: Anatomy) -> None:
        done = (name for name in sorted(self.targets(anatomy)) if name in model.pruned and model.pruned[name].corrected)
        twice = next((name for name in done if resolve(self.correct, name)), None)
        if twice:
            raise RefusedError(
                f"gptq: {twice} was corrected to the untouched model's outputs when it was pruned; "
                "a second time would count what earlier layers lost twice",
                "say correct: false here, or in prune",
            )

    def row_parts(self) -> int:
        return self.end_loss_parts if self.end_loss else 0

    def token_share(self) -> float:
        return self.end_loss_share

    def needs(self) -> frozenset[type[Statistic]]:
        return frozenset({Hessian}) if self.correct is False else frozenset({Hessian, Drift})

    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        return self._solved(weight, stats, number_format, None)

    def masked(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat, kept: Tensor) -> Change:
        return self._solved(weight, stats, number_format, kept)

    def _solved(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat, kept: Tensor | None) -> Change:
        hessian = shrunk(stats[Hessian].matrix, plain(self.shrinkage))
        target = self._target(weight, stats)
        if kept is not None and self.correct:
            target = solve_kept(target, hessian, kept, damp=plain(self.damp))
        params = None if self.search else number_format.fit(target)
        quantized, report = gptq_solve(
            target,
            hessian,
            number_format,
            damp=plain(self.damp),
            act_order=plain(self.act_order),
            params=params,
            kept=kept,
        )
        if self.tune and not report.fallback:
            live = hessian.diagonal() > 0
            quantized = tune(target.where(live, 0.0), hessian, quantized, damp=report.damp, kept=kept)
        return Change(quantized, notes={"damp": report.damp, "fallback": "rtn" if report.fallback else ""})

    def linear_effort(self, shape: tuple[int, ...], number_format: NumberFormat) -> Effort:
        effort = number_format.effort(shape, searched=plain(self.search)) + solve_effort(shape)
        if plain(self.correct):
            effort += correct_effort(shape)
        if plain(self.tune):
            shapes = number_format.param_shapes(shape)
            effort += tune_effort(shape, sum(shapes[lever][0][1] for lever in number_format.levers))
        return effort

    def _target(self, weight: Tensor, stats: LinearStats) -> Tensor:
        """What to come close to on the inputs that the quantized model gives."""
        if not self.correct:
            return weight
        drift = stats[Drift]
        return corrected_target(weight, drift.matrix, stats[Hessian].matrix, drift.gap)
