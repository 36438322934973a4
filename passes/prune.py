"""Pruning: weights that matter least become zeros, and those that stay make up for them.

    scores    magnitude, wanda (arXiv 2306.11695), obd (LeCun et al. 1989); sparsegpt (arXiv 2301.00774) also updates,
              alps (arXiv 2406.07831) searches for mask and values together
    swap      then exact swaps of what stays, row by row (SparseSwaps, arXiv 2512.10922)
    solve     then what stays by least squares on the inputs; `correct` aims at the untouched model's outputs

Zeros stay zeros in what comes after, `gptq` in the same sweep for one: it feeds errors into what stays only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compress.formats.base import ModelSpec, Zeros
from compress.formats.errors import RefusedError
from compress.kernels.effort import Effort
from compress.kernels.measure.hessian import shrunk
from compress.kernels.solve.alps import alps, alps_effort
from compress.kernels.solve.correct import correct_effort, corrected_target
from compress.kernels.solve.kept import solve_kept, solve_kept_effort
from compress.kernels.solve.mask import Score, keep_groups, keep_share, keep_share_of_all, scores
from compress.kernels.solve.sparsegpt import sparsegpt, sparsegpt_effort
from compress.kernels.solve.swap import swap, swap_effort
from compress.passes.core.base import LayerPass
from compress.passes.core.change import Change
from compress.passes.core.targets import Selection
from compress.passes.forward.input_ranges import Moments
from compress.passes.forward.statistics import Drift, Hessian, LinearStats, Statistic
from compress.passes.model.anatomy import Anatomy

_PATTERNS = {"2:4": (2, 4), "4:8": (4, 8)}
_SOLVERS = {"sparsegpt": sparsegpt, "alps": alps}


class Prune(Selection, LayerPass):
    """Set the weights that matter least to zero; those that stay make up for them. Needs data."""

    method: Literal[Score, "sparsegpt", "alps"] = Field(
        "alps",
        description="what a weight is worth: its size, with its inputs (`wanda`, `obd`), by OBS, or searched for. "
        "`wanda` compares the weights of a row, `sparsegpt` those of 128 inputs, the others all of a layer",
    )
    sparsity: float = Field(0.5, gt=0, lt=1, description="which part of every weight becomes zero")
    pattern: Literal["2:4", "4:8"] | None = Field(
        None, description="or so many of every 4 or 8 neighbouring inputs stay, which costs quality"
    )
    swap: bool = Field(
        False, description="then exchange what stays for what does not, while the outputs err less (slow)"
    )
    solve: bool = Field(True, description="then solve for the values of what stays, by least squares on the inputs")
    correct: bool = Field(False, description="aim at the untouched model's outputs; runs it beside")
    damp: float = Field(0.01, gt=0, le=1, description="added to the Hessian's diagonal, as a part of its mean")
    shrinkage: float = Field(
        0.0,
        ge=0,
        le=1,
        description="by which part the Hessian's entries off its diagonal are made smaller: they are chance in part",
    )

    @model_validator(mode="after")
    def _check_one_way(self) -> Self:
        if self.pattern and "sparsity" in self.model_fields_set:
            raise ValueError("pattern says how many weights stay, and sparsity does: leave one of them out")
        return self

    @property
    def kept(self) -> tuple[int, int] | None:
        """n of every m neighbouring inputs stay; None if it goes by a share."""
        return _PATTERNS[self.pattern] if self.pattern else None

    def targets(self, anatomy: Anatomy) -> frozenset[str]:
        return self.chosen(anatomy)

    def needs(self) -> frozenset[type[Statistic]]:
        if self.correct:
            return frozenset({Hessian, Drift})
        if self.swap or self.solve or self.method in _SOLVERS:
            return frozenset({Hessian})
        return frozenset() if self.method == "magnitude" else frozenset({Moments})

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        self.refuse_unknown_stacks(anatomy)
        targets = sorted(self.targets(anatomy))
        for name in targets:
            spec = model.tensors[f"{name}.weight"]
            if spec.format is not None or name in model.pruned:
                done = "pruned" if name in model.pruned else "quantized"
                raise RefusedError(
                    f"prune: {name} was {done} by an earlier pass",
                    f"move prune before the pass that quantizes, or skip: [{name}]",
                )
            if self.kept and spec.shape[1] % self.kept[1]:
                raise RefusedError(
                    f"prune: {self.kept[1]} does not divide the {spec.shape[1]} inputs of {name}",
                    f"say sparsity: 0.5 in place of the pattern, or skip: [{name}]",
                )
        zeros = Zeros(self.pattern or f"{100 * self.sparsity:g} %", self.correct)
        return replace(model, pruned={**model.pruned, **dict.fromkeys(targets, zeros)})

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        return {name: self._pruned(weight, stats) for name, weight in weights.items()}

    def effort(self, weights: Mapping[str, tuple[int, ...]]) -> Effort:
        return sum((self._effort(shape) for shape in weights.values()), Effort())

    def _pruned(self, weight: Tensor, stats: LinearStats) -> Change:
        if self.needs() and not stats.tokens:  # an embedding, or an expert that no token came to
            mask = self._mask(weight.abs(), rows=False)
            return Change(weight * mask, mask=mask, unreached=stats.gathered, notes={"fallback": "magnitude"})
        hessian = shrunk(stats[Hessian].matrix, self.shrinkage) if Hessian in stats else None
        target = self._target(weight, stats)
        values, mask, fallback = self._first(target, stats, hessian)
        if self.swap and hessian is not None:
            values, mask = swap(target, hessian, values, mask, group=self.kept and self.kept[1])
        if self.solve and hessian is not None:
            values = solve_kept(target, hessian, mask, damp=self.damp, start=values)
        return Change(values, mask=mask, notes={"fallback": fallback})

    def _first(self, target: Tensor, stats: LinearStats, hessian: Tensor | None) -> tuple[Tensor, Tensor, str]:
        """Values and mask as `method` has them, and what was done in its stead if it could not be."""
        kind: Score = "wanda"
        if hessian is not None and (solver := _SOLVERS.get(self.method)):
            found = solver(target, hessian, sparsity=self.sparsity, pattern=self.kept, damp=self.damp)
            if found is not None:
                return *found, ""
        if self.method != "sparsegpt" and self.method != "alps":
            kind = self.method
        mask = self._mask(scores(target, self._energy(target, stats), kind), rows=kind == "wanda")
        return target * mask, mask, kind if self.method in _SOLVERS else ""

    def _mask(self, score: Tensor, *, rows: bool) -> Tensor:
        """What stays of every group, of each of the `rows`, or of all rows together."""
        if self.kept:
            return keep_groups(score, *self.kept)
        return keep_share(score, self.sparsity) if rows else keep_share_of_all(score, self.sparsity)

    def _energy(self, weight: Tensor, stats: LinearStats) -> Tensor:
        """Σ x² of every input [in] fp32; ones where the method does not ask for it."""
        if Hessian in stats:
            return stats[Hessian].matrix.diagonal()
        return stats[Moments].energy.float() if Moments in stats else torch.ones_like(weight[0])

    def _target(self, weight: Tensor, stats: LinearStats) -> Tensor:
        """What to come close to on the inputs that the pruned model gives."""
        if not self.correct:
            return weight
        drift = stats[Drift]
        return corrected_target(weight, drift.matrix, stats[Hessian].matrix, drift.gap)

    def _effort(self, shape: tuple[int, ...]) -> Effort:
        efforts = {"sparsegpt": sparsegpt_effort, "alps": alps_effort}
        scored = Effort(elements=20 * shape[0] * shape[1])
        effort = efforts[self.method](shape) if self.method in efforts else scored
        effort += swap_effort(shape, self.kept and self.kept[1]) if self.swap else Effort()
        effort += solve_kept_effort(shape) if self.solve else Effort()
        return effort + (correct_effort(shape) if self.correct else Effort())
