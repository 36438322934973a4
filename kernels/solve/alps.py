"""ALPS (arXiv 2406.07831): which weights stay and what they are, searched together by ADMM.

The weight is split in two, X that fits the outputs and D that has zeros, and the price of their difference rises:

    X = (H + ρ·I)⁻¹·(H·W − V + ρ·D)        least squares with a pull toward D
    D = what stays of X + V / ρ             the largest of all, or of each group of n:m
    V = V + ρ·(X − D)

so a weight may go, and come back, for what all others do by then. H is scaled to a diagonal of ones before, which
makes sizes of weights comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.solve.mask import keep_groups, keep_share_of_all

_PRICE = 0.1
_ROUND = 3  # steps at one price
_ROUNDS = 20
_USUAL = 10  # rounds until the mask stays, at 50 %
_RISES = ((0.1, 1.5), (0.005, 1.4), (0.0, 1.25))  # the price by so much, where more of the mask than this changed


def alps(
    weight: Tensor,
    hessian: Tensor,
    *,
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
    within: Tensor | None = None,
    damp: float,
) -> tuple[Tensor, Tensor] | None:
    """The pruned `weight` [rows, columns] fp32, and its mask (True: stays); None if H cannot be factored.

    `hessian` H [columns, columns] fp32; every diagonal entry grows by the part `damp`. The part `sparsity` of all
    weights goes; or `pattern` (n, m): n of every m neighbouring columns of a row stay. It ends where three steps in a
    row leave the mask as it is. Columns with H_jj = 0 get the weight 0. Where a part was pruned before, only what is
    `within` [rows, columns] bool may stay.
    """
    live = hessian.diagonal() > 0
    size = torch.where(live, hessian.diagonal(), 1.0).sqrt()
    scaled = hessian / size / size.unsqueeze(1)
    scaled.diagonal().add_(damp + (~live).float())
    weight = torch.where(live, weight * size, 0.0)
    found = _search(weight, scaled, partial(_largest, sparsity=sparsity, pattern=pattern, within=within))
    return None if found is None else (found[0] / size, found[1])


def alps_effort(shape: tuple[int, ...]) -> Effort:
    """What `alps` takes: an inverse a round, a product with it at each step, and the largest of all weights."""
    rows, columns = shape
    flops = _USUAL * (2 * columns**3 + 2 * _ROUND * rows * columns**2)
    return Effort(flops=flops, elements=_USUAL * _ROUND * 20 * rows * columns)


def _search(weight: Tensor, hessian: Tensor, largest: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor] | None:
    """D and its mask at the end, both in the scale of `hessian`, whose diagonal is about 1."""
    goal, pull, price = weight @ hessian, torch.zeros_like(weight), _PRICE
    kept = largest(weight)
    sparse = weight * kept
    for _ in range(_ROUNDS):
        inverse = _inverse(hessian, price)
        if inverse is None:
            return None
        before = kept
        for _ in range(_ROUND):
            fitted = (goal - pull + price * sparse) @ inverse
            target = fitted + pull / price
            kept = largest(target)
            sparse = target * kept
            pull += price * (fitted - sparse)
        changed = float((kept != before).sum()) / max(1, int(kept.sum()))
        if changed == 0:
            break
        price *= next(rise for most, rise in _RISES if changed > most)
    return sparse, kept


def _largest(weight: Tensor, sparsity: float, pattern: tuple[int, int] | None, within: Tensor | None) -> Tensor:
    """The mask of the weights that are largest, of all or of each group, of those `within`."""
    size = weight.abs() if within is None else weight.abs().masked_fill(~within, -1.0)
    kept = keep_groups(size, *pattern) if pattern else keep_share_of_all(size, sparsity)
    return kept if within is None else kept & within


def _inverse(hessian: Tensor, price: float) -> Tensor | None:
    """(H + ρ·I)⁻¹ [columns, columns]."""
    regular = hessian.clone()
    regular.diagonal().add_(price)
    lower, failed = torch.linalg.cholesky_ex(regular)
    return None if int(failed) else torch.cholesky_inverse(lower)
