"""What a linear layer loses with some of its input channels: which of them can go.

H = Σxᵀx are the second moments of the inputs, W [rows, columns] the layer that takes them, λ a damping. If the others
make up for column j in the least squares of the outputs, its removal costs

    w_jᵀw_j / [(H + λI)⁻¹]_jj        and leaves        W − w_j·[(H + λI)⁻¹]_j / [(H + λI)⁻¹]_jj

(optimal brain surgeon, Hassibi and Stork 1993, with a whole column for a weight).
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.effort import Effort

_RUNGS = 5
_LEAST = 1e-30


def magnitudes(columns: Tensor, *rows: Tensor) -> Tensor:
    """Σ|w| [channels] fp32 of what reads a channel, `columns` [out, channels], and what writes it, [channels, in]."""
    return torch.stack([columns.abs().sum(0), *(each.abs().sum(1) for each in rows)]).sum(0)


def energies(weight: Tensor, hessian: Tensor) -> Tensor:
    """‖w_j‖²·H_jj [columns]: what each column alone adds to the outputs (Wanda, arXiv 2306.11695, of whole columns)."""
    return weight.square().sum(0) * hessian.diagonal()


def cheapest(weight: Tensor, hessian: Tensor, count: int, damp: float = 0.01) -> tuple[Tensor, Tensor]:
    """`count` columns, each the one that costs least once those before it are gone and made up for; and these costs.

    Gives indices [count] int64 and costs [count] fp64, in that order. One by one, not by the costs of the whole layer:
    of two channels that stand in for each other each is cheap, and both together are not. `damp` is λ as a part of
    the mean of diag(H). What the removals do to W and to the inverse is kept as factors of rank 1, in fp64.
    """
    inverse, w = torch.cholesky_inverse(factor(hessian, damp)), weight.double()
    energy, spread = w.square().sum(0), inverse.diagonal().double()
    lines, shares = (w.new_zeros(count, w.shape[1]) for _ in range(2))
    gone, costs = w.new_zeros(count, w.shape[0]), w.new_zeros(count)
    order = torch.zeros(count, dtype=torch.int64, device=weight.device)
    open_ = torch.ones_like(energy, dtype=torch.bool)
    for step in range(count):
        cost = torch.where(open_, energy / spread, torch.inf)
        order[step] = at = cost.argmin()
        costs[step] = cost[at]
        before = shares[:step, at]
        line = inverse[at].double() - before @ lines[:step]
        column = w[:, at] - before @ gone[:step]
        share = line / line[at]
        inner = column @ w - (gone[:step] @ column) @ shares[:step]
        energy = (energy + share.square() * column.square().sum() - 2 * share * inner).clamp(min=0)
        spread = (spread - share * line).clamp(min=_LEAST)
        lines[step], shares[step], gone[step] = line, share, column
        open_[at] = False
    return order, costs


def cheapest_effort(shape: tuple[int, ...], count: int) -> Effort:
    """What `cheapest` takes: an inverse, and for each removal a pass over the weight and over those before it."""
    rows, columns = shape
    return Effort(flops=columns**3, elements=count * (rows * columns + count * (columns + rows) + 10 * columns))


def factor(hessian: Tensor, damp: float) -> Tensor:
    """The lower Cholesky factor of H + λI [columns, columns] fp32, λ = `damp` times the mean of diag(H).

    Where that is not positive definite λ is made ten times as large, again and again; at last inputs count as
    independent of each other.
    """
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean()) or 1.0
    for rung in range(_RUNGS):
        regular = hessian.clone()
        regular.diagonal().add_(damp * 10**rung * mean)
        lower, info = torch.linalg.cholesky_ex(regular)
        if int(info) == 0:
            factored: Tensor = lower
            return factored
    return (diagonal.nan_to_num().clamp(min=0) + damp * abs(mean)).clamp(min=_LEAST).sqrt().diag_embed()
