"""One attention head for several: heads of keys or values are replaced by one that they share, each turned its way.

Head i has rows A_i [width, columns], of inputs whose second moments are I (weights times a factor of theirs). Wanted
are C_i and T_i [width, width], S = Σ C_i·A_i the shared head and A_i ≈ T_i·S, so that T_i can go to what reads the
head: q·T_iS = (T_iᵀq)·S.

`mean` is the pooling of GQA (arXiv 2305.13245): S is the mean, T_i = I.
`aligned` turns heads towards each other before: T_i orthogonal, Σ‖A_i − T_iS‖² least in turn for T_i (orthogonal
Procrustes, Schönemann 1966: the polar factor of A_iSᵀ) and for S (the mean of T_iᵀA_i), as arXiv 2412.20677 does.
`shared` asks nothing of T_i and weighs errors by what reads them, Σ tr((A_i − T_iS)ᵀ·G_i·(A_i − T_iS)): the rows of S
span the first singular vectors of all √G_i·A_i together (Eckart and Young 1936).

What a rotary embedding turns may only be multiplied as complex numbers, a pair of rows each: the same with width 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from compress.kernels.effort import Effort

How = Literal["mean", "aligned", "shared"]

_ROUNDS = 20
_LEAST = 1e-12
"""Of the largest eigenvalue: what is less counts as 0."""


def merge(
    heads: Tensor, weights: Tensor, how: How, pairs: Sequence[tuple[int, int]], free: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """C and T [heads, width, width] fp64 for `heads` A [heads, width, columns] fp64.

    `weights` are G [heads, width, width] ≥ 0. `pairs` are rows that are one complex number, `free` those that may be
    mixed; the others are pooled as they are. Of heads that are the same C is I / heads, and T is I, to the bit.
    """
    turns = torch.eye(heads.shape[1], dtype=heads.dtype, device=heads.device).repeat(len(heads), 1, 1)
    mixes = turns / len(heads)
    if how == "mean" or all(torch.equal(head, heads[0]) for head in heads):
        return mixes, turns
    solve = _aligned if how == "aligned" else _shared
    if pairs:
        real, imaginary = (torch.tensor(side, device=heads.device) for side in zip(*pairs))
        rows, energy = torch.complex(heads[:, real], heads[:, imaginary]), weights.diagonal(dim1=1, dim2=2)
        found = solve(rows[:, :, None], (energy[:, real] + energy[:, imaginary]).to(rows.dtype)[:, :, None, None])
        for whole, each in zip((mixes, turns), found):
            factors = each[:, :, 0, 0]
            whole[:, real, real] = whole[:, imaginary, imaginary] = factors.real
            whole[:, imaginary, real], whole[:, real, imaginary] = factors.imag, -factors.imag
    if free:
        at = torch.tensor(free, device=heads.device)
        found = solve(heads[:, None, at], weights[:, None, at[:, None], at])
        for whole, each in zip((mixes, turns), found):
            whole[:, at[:, None], at] = each[:, 0]
    return mixes, turns


def merge_loss(
    heads: Tensor, weights: Tensor, how: How, pairs: Sequence[tuple[int, int]], free: Sequence[int]
) -> Tensor:
    """Σ tr((A_i − T_iS)ᵀ·G_i·(A_i − T_iS)) of what `merge` gives: a scalar, fp64."""
    mixes, turns = merge(heads, weights, how, pairs, free)
    gap = heads - turns @ (mixes @ heads).sum(0)
    return (weights @ gap * gap).sum()


def neighbours(losses: Tensor, groups: int) -> Tensor:
    """An order [n] int64 of n heads in which neighbours, `groups` of equal size, lose little together.

    `losses` [n, n] fp64, symmetric, are of two heads each, and add up. From the order there is, the best exchange of
    two is made, one after the other, until none helps.
    """
    count = len(losses)
    group = torch.arange(count, device=losses.device) // (count // groups)
    while True:
        within = losses @ torch.nn.functional.one_hot(group, groups).to(losses)
        own, other = within.gather(1, group[:, None]), within[:, group]
        change = other + other.T - own - own.T - 2 * losses
        change = torch.where(group == group[:, None], torch.inf, change)
        first, second = divmod(int(change.argmin()), count)
        if change[first, second] >= -_LEAST * losses.sum():
            return group.argsort(stable=True)
        group[[first, second]] = group[[second, first]]


def merge_effort(heads: int, width: int, columns: int) -> Effort:
    """What `merge` takes at most: products with all rows, and the eigenvectors of theirs with each other."""
    rows = heads * width
    return Effort(flops=4 * rows * columns * (rows + _ROUNDS * width) + 30 * rows**3, calls=50 * _ROUNDS)


def _aligned(blocks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """C and T [heads, n, k, k] of `blocks` [heads, n, k, columns]: n blocks of k rows, each by itself."""
    shared = blocks[0]
    for _ in range(_ROUNDS):
        turns = _polar(blocks @ shared.mH)
        shared = (turns.mH @ blocks).mean(0)
    return turns.mH / len(blocks), turns


def _shared(blocks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """As `_aligned`, with `weights` [heads, n, k, k].

    S = R·B·P, where P are orthonormal rows of the span, B² the mean of what heads have there and R a rotation: so S is
    as large as a head, T_i are orthogonal where heads differ by rotations, and near I where they hardly differ.
    """
    roots = _power(weights, 0.5)
    weighted = (roots @ blocks).movedim(0, 1).flatten(1, 2)
    picked = torch.linalg.eigh(weighted @ weighted.mH)[1][..., -blocks.shape[2] :].mH
    basis = picked @ weighted
    picked = _power(basis @ basis.mH, -0.5) @ picked
    inside = blocks @ (picked @ weighted).mH
    moments = (inside.mH @ inside).mean(0)
    turns = inside @ _power(moments, -0.5)
    rotation = _polar(turns.mean(0))
    mixes = (rotation @ _power(moments, 0.5) @ picked).unflatten(-1, (len(blocks), -1)).movedim(-2, 0)
    return mixes @ roots, turns @ rotation.mH


def _polar(matrix: Tensor) -> Tensor:
    """The unitary matrices nearest to `matrix` [..., k, k]."""
    left, _, right = torch.linalg.svd(matrix)
    nearest: Tensor = left @ right
    return nearest


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """`matrix` [..., k, k] ≥ 0 to a power; directions in which it is 0 stay 0."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > _LEAST * values[..., -1:].clamp(min=1e-300)
    powers = torch.where(kept, values.clamp(min=1e-300) ** exponent, 0)
    power: Tensor = (vectors * powers[..., None, :]) @ vectors.mH
    return power
