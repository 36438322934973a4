"""The best values of the weights that stay: least squares on H, by conjugate gradients of all rows at once.

With K the columns that a row keeps, min (w − ŵ)·(H + λ·I)·(w − ŵ)ᵀ over ŵ with ŵ_j = 0 outside of K is solved by

    (H + λ·I)_KK · ŵ_K = ((H + λ·I)·w)_K.

Rows have masks of their own, so each has a system of its own: thousands of factorizations, or, as here, products of
all rows with one H, masked. The diagonal preconditions them (Jacobi), as in ALPS (arXiv 2406.07831, section 3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.effort import Effort

_STEPS = 24
_TOLERANCE = 1e-9


def solve_kept(
    weight: Tensor, hessian: Tensor, kept: Tensor, *, damp: float, start: Tensor | None = None, steps: int = _STEPS
) -> Tensor:
    """The weight [rows, columns] fp32 nearest to `weight` in its outputs of those that are 0 outside of `kept`.

    `hessian` H [columns, columns] fp32; λ is `damp` times the mean of its diagonal. It begins at `start` (or `weight`)
    and ends where the gradients are as good as zero, or after `steps`; what H says nothing about stays as it was.
    """
    damped = hessian.clone()
    damped.diagonal().add_(damp * float(hessian.diagonal().mean()))
    diagonal = damped.diagonal()
    precondition = torch.where(diagonal > 0, diagonal.reciprocal(), 0.0)
    values = (weight if start is None else start) * kept
    residual = ((weight - values) @ damped) * kept
    direction = residual * precondition
    power = first = (residual * direction).sum(1, keepdim=True)
    for _ in range(steps):
        if bool((power <= _TOLERANCE * first).all()):
            break
        image = (direction @ damped) * kept
        curvature = (direction * image).sum(1, keepdim=True)
        step = torch.where(curvature > 0, power / curvature, 0.0)
        values += step * direction
        residual -= step * image
        scaled = residual * precondition
        before, power = power, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(before > 0, power / before, 0.0) * direction
    return values


def solve_kept_effort(shape: tuple[int, ...]) -> Effort:
    """What `solve_kept` takes: a product with H at each step."""
    rows, columns = shape
    return Effort(flops=2 * _STEPS * rows * columns**2, elements=10 * _STEPS * rows * columns)
