"""Which weights of a linear become zero, and what those that stay make up for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.measure.hessian import shrunk
from compress.kernels.solve.alps import alps, alps_effort
from compress.kernels.solve.correct import correct_effort, corrected_target
from compress.kernels.solve.kept import solve_kept, solve_kept_effort
from compress.kernels.solve.mask import Score, keep_groups, keep_share, keep_share_of_all, scores
from compress.kernels.solve.sparsegpt import sparsegpt, sparsegpt_effort
from compress.kernels.solve.swap import swap, swap_effort
from compress.passes.core.change import Change
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Drift, Energy, Hessian, Statistic

Method = Literal[Score, "sparsegpt", "alps"]
_SOLVERS = {"sparsegpt": (sparsegpt, sparsegpt_effort), "alps": (alps, alps_effort)}


@dataclass(frozen=True)
class Pruning:
    """By which `method` weights go, and what is then done for those that stay, at `correct`ed targets.

    By `pattern` n of every m neighbouring inputs stay; None: all but a share. By the part `shrinkage` solvers take
    the Hessian's entries off its diagonal smaller.
    """

    method: Method
    pattern: tuple[int, int] | None
    swap: bool
    solve: bool
    correct: bool
    damp: float
    shrinkage: float

    def kinds(self) -> frozenset[type[Statistic]]:
        """The statistics that it wants of the inputs."""
        if self.correct:
            return frozenset({Hessian, Drift})
        if self.swap or self.solve or self.method in _SOLVERS:
            return frozenset({Hessian})
        return frozenset() if self.method == "magnitude" else frozenset({Energy})

    def effort(self, shape: tuple[int, ...]) -> Effort:
        """What it takes for a weight of this shape [out, in]."""
        if self.method in _SOLVERS:
            effort = _SOLVERS[self.method][1](shape)
        else:
            effort = Effort(elements=20 * shape[0] * shape[1])
        effort += swap_effort(shape, self.pattern and self.pattern[1]) if self.swap else Effort()
        effort += solve_kept_effort(shape) if self.solve else Effort()
        return effort + (correct_effort(shape) if self.correct else Effort())

    def change(self, weight: Tensor, stats: LinearStats, share: float, within: Tensor | None = None) -> Change:
        """The weight [out, in] fp32 with the part `share` of it, or what the pattern says, at zero.

        `within` [out, in] bool: what may stay of a weight that was pruned before.
        """
        if self.kinds() and not stats.tokens:  # an embedding, or an expert that no token came to
            mask = self._mask(weight.abs(), share, within, rows=False)
            return Change(weight * mask, mask=mask, unreached=stats.gathered, notes={"fallback": "magnitude"})
        hessian = shrunk(stats[Hessian].matrix, self.shrinkage) if Hessian in stats else None
        target = self._target(weight, stats)
        values, mask, fallback = self._first(target, stats, hessian, share, within)
        if self.swap and hessian is not None:
            values, mask = swap(target, hessian, values, mask, group=self.pattern and self.pattern[1], within=within)
        if self.solve and hessian is not None:
            values = solve_kept(target, hessian, mask, damp=self.damp, start=values)
        return Change(values, mask=mask, notes={"fallback": fallback})

    def _first(
        self, target: Tensor, stats: LinearStats, hessian: Tensor | None, share: float, within: Tensor | None
    ) -> tuple[Tensor, Tensor, str]:
        """Values and mask as `method` has them, and what was done in its stead if it could not be."""
        kind: Score = "wanda"
        if hessian is not None and self.method in _SOLVERS:
            solver = _SOLVERS[self.method][0]
            found = solver(target, hessian, sparsity=share, pattern=self.pattern, within=within, damp=self.damp)
            if found is not None:
                return *found, ""
        if self.method != "sparsegpt" and self.method != "alps":
            kind = self.method
        mask = self._mask(scores(target, self._energy(target, stats), kind), share, within, rows=kind == "wanda")
        return target * mask, mask, kind if self.method in _SOLVERS else ""

    def _mask(self, score: Tensor, share: float, within: Tensor | None, *, rows: bool) -> Tensor:
        """What stays of every group, of each of the `rows`, or of all rows together; nothing that is not `within`."""
        if self.pattern:
            return keep_groups(score, *self.pattern)
        score = score if within is None else score.masked_fill(~within, -1.0)
        mask = keep_share(score, share) if rows else keep_share_of_all(score, share)
        return mask if within is None else mask & within

    def _energy(self, weight: Tensor, stats: LinearStats) -> Tensor:
        """Σ x² of every input [in] fp32; ones where the method does not ask for it."""
        if Hessian in stats:
            return stats[Hessian].matrix.diagonal()
        return stats[Energy].total.float() if Energy in stats else torch.ones_like(weight[0])

    def _target(self, weight: Tensor, stats: LinearStats) -> Tensor:
        """What to come close to on the inputs that the pruned model gives."""
        if not self.correct:
            return weight
        drift = stats[Drift]
        return corrected_target(weight, drift.matrix, stats[Hessian].matrix, drift.gap)
