"""SparseGPT (arXiv 2301.00774): prune column by column, and let later columns make up for each weight that goes.

With H⁻¹ = UᵀU, U upper triangular, taking the weight w_j of a row away costs w_j² / U_jj², once the columns after j
have taken their share: w_k −= w_j / U_jj · U_jk (OBS; equations 3 and 4). Which weights go is decided for a block
of columns at a time, by what they cost as they then are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.solve.mask import keep_groups, keep_most_of_all, kept_of

_BLOCK = 128
_RUNGS = 5


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    *,
    sparsity: float = 0.5,
    pattern: tuple[int, int] | None = None,
    within: Tensor | None = None,
    damp: float,
) -> tuple[Tensor, Tensor] | None:
    """The pruned `weight` [rows, columns] fp32, and its mask (True: stays); None if no damping lets H be inverted.

    `hessian` H [columns, columns] fp32 with `damp` times its mean added to the diagonal, or ten times more, and so on.
    Of a block of columns the part `sparsity` goes, of all rows together; or `pattern` (n, m): n of every m
    neighbouring columns of a row stay. Columns with H_jj = 0 get the weight 0. Where a part was pruned before, only
    what is `within` [rows, columns] bool may stay: each block loses the same part of that, and `sparsity` holds of all.
    """
    root = _inverse_root(hessian, damp)
    if root is None:
        return None
    weight = torch.where(hessian.diagonal() > 0, weight, 0.0)
    kept = torch.empty_like(weight, dtype=torch.bool)
    size = _BLOCK if pattern is None else pattern[1] * max(1, _BLOCK // pattern[1])
    starts = range(0, weight.shape[1], size)
    counts = [kept_of(part.numel(), sparsity) for part in weight.split(size, 1)]
    if within is not None:
        counts = _shared_out(kept_of(weight.numel(), sparsity), [int(part.sum()) for part in within.split(size, 1)])
    for start, count in zip(starts, counts):
        here, after = slice(start, start + size), slice(start + size, None)
        free = None if within is None else within[:, here]
        errors = _prune_block(weight[:, here], kept[:, here], root[here, here], count, pattern, free)
        weight[:, after] -= errors @ root[here, after]
    return weight, kept


def sparsegpt_effort(shape: tuple[int, ...]) -> Effort:
    """What `sparsegpt` takes: two factorizations and an inverse, and a handful of operators for each column."""
    rows, columns = shape
    return Effort(flops=2 * columns**3 + rows * columns**2, calls=columns * (8 + rows * _BLOCK / 1000))


def _shared_out(count: int, parts: Sequence[int]) -> list[int]:
    """`count` in integers, to each part as much of it as it is of all; no part gets more than it is."""
    reached = [min(count, sum(parts)) * done // max(1, sum(parts)) for done in accumulate(parts, initial=0)]
    return [after - before for before, after in pairwise(reached)]


def _prune_block(
    weight: Tensor,
    kept: Tensor,
    root: Tensor,
    count: int,
    pattern: tuple[int, int] | None,
    within: Tensor | None,
) -> Tensor:
    """Prune the columns of one block in place, to `count` weights or a pattern, of those `within`.

    Returns what each passes on, w / U_jj where it goes, else 0.
    """
    diagonal = root.diagonal()
    errors = torch.zeros_like(weight)
    if pattern is None:
        score = (weight / diagonal).square()
        score = score if within is None else score.masked_fill(~within, -1.0)
        kept.copy_(keep_most_of_all(score, count))
    for at in range(weight.shape[1]):
        if pattern is not None and at % pattern[1] == 0:
            group = slice(at, at + pattern[1])
            kept[:, group] = keep_groups((weight[:, group] / diagonal[group]).square(), *pattern)
        errors[:, at] = torch.where(kept[:, at], 0.0, weight[:, at]) / diagonal[at]
        weight[:, at:] -= errors[:, at : at + 1] * root[at, at:]
    weight.mul_(kept)  # zeros exactly, whatever the rounding of w − w / U·U
    return errors


def _inverse_root(hessian: Tensor, damp: float) -> Tensor | None:
    """U, upper triangular, with UᵀU = (H + damping)⁻¹; dead columns count as usual ones."""
    live = hessian.diagonal() > 0
    mean = hessian.diagonal()[live].mean() if bool(live.any()) else hessian.new_ones(())
    for rung in range(_RUNGS):
        damped = hessian.clone()
        damped.diagonal().copy_(torch.where(live, hessian.diagonal(), mean)).add_(damp * 10.0**rung * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            root: Tensor = upper
            if not int(failed) and bool(root.isfinite().all()):
                return root
    return None
