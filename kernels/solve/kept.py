"""The best values of the weights that stay: least squares on H, row by row.

With K the columns that a row keeps, min (w − ŵ)·(H + λ·I)·(w − ŵ)ᵀ over ŵ with ŵ_j = 0 outside of K is solved by

    (H + λ·I)_KK · ŵ_K = ((H + λ·I)·w)_K.

Rows have masks of their own, so each has a system of its own: they are gathered and factored by the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.effort import Effort

_CHUNK = 1 << 24


def solve_kept(weight: Tensor, hessian: Tensor, kept: Tensor, *, damp: float) -> Tensor:
    """The weight [rows, columns] fp32 nearest to `weight` in its outputs of those that are 0 outside of `kept`.

    `hessian` H [columns, columns] fp32; λ is `damp` times the mean of its diagonal. A row whose system cannot be
    factored keeps the values of `weight`.
    """
    damped = hessian.clone()
    damped.diagonal().add_(damp * float(hessian.diagonal().mean()))
    sides = weight @ damped
    step = max(1, _CHUNK // max(1, int(kept.sum(1).max()) ** 2))
    parts = zip(weight.split(step), sides.split(step), kept.split(step))
    return torch.cat([_solve_rows(*part, damped) for part in parts])


def solve_kept_effort(shape: tuple[int, ...], share: float) -> Effort:
    """What `solve_kept` takes where the part `share` of each row stays."""
    rows, columns = shape
    most = int(share * columns)
    return Effort(flops=2 * rows * columns**2 + rows * most**3 / 3, elements=4 * rows * most**2)


def _solve_rows(weight: Tensor, sides: Tensor, kept: Tensor, hessian: Tensor) -> Tensor:
    """Systems of as many unknowns as one of the rows keeps: others have some that are 0 by themselves."""
    most = int(kept.sum(1).max())
    columns = torch.argsort(kept.byte(), dim=1, descending=True, stable=True)[:, :most]
    there = kept.gather(1, columns)
    systems = hessian[columns.unsqueeze(2), columns.unsqueeze(1)]
    systems.mul_(there.unsqueeze(2)).mul_(there.unsqueeze(1))
    systems.diagonal(dim1=1, dim2=2).add_(~there)
    lower, failed = torch.linalg.cholesky_ex(systems)
    side = sides.gather(1, columns) * there
    solved = torch.cholesky_solve(side.unsqueeze(2), lower)[:, :, 0] * there
    fine = (failed == 0) & solved.isfinite().all(1)
    solved = torch.where(fine.unsqueeze(1), solved, weight.gather(1, columns) * there)
    return torch.zeros_like(weight).scatter_(1, columns, solved)
