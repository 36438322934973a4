"""What a linear layer loses with whole blocks of its input columns, as one attention head's: which of them can go.

As in channels.py, with a block for a column: where the others make up for block b in the least squares of the outputs,
its removal costs tr(W_b·[((H + λI)⁻¹)_bb]⁻¹·W_bᵀ), and leaves W − W_b·[((H + λI)⁻¹)_bb]⁻¹·((H + λI)⁻¹)_b:.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.measure.channels import factor

_SETS = 128
"""So many are all tried."""


def block_energies(weight: Tensor, hessian: Tensor, size: int) -> Tensor:
    """tr(W_b·H_bb·W_bᵀ) [blocks]: what each block of `size` columns alone adds to the outputs."""
    blocks = weight.unflatten(1, (-1, size)).transpose(0, 1)
    found: Tensor = ((blocks @ _diagonal_blocks(hessian, size)) * blocks).sum((1, 2))
    return found


def cheapest_blocks(
    weight: Tensor, hessian: Tensor, count: int, size: int, damp: float = 0.01
) -> tuple[Tensor, Tensor]:
    """`count` blocks of `size` columns that cost least together; of many sets, one after the other, each the cheapest.

    Gives their indices [count] int64 and costs [count] fp64, each once those before it are gone and made up for;
    `damp` is λ as a part of the mean of diag(H). In fp64, for the few blocks that there are.
    """
    inverse, w = torch.cholesky_inverse(factor(hessian, damp)).double(), weight.double()
    open_ = torch.ones(w.shape[1] // size, dtype=torch.bool, device=w.device)
    if comb(len(open_), count) <= _SETS:
        best = min(combinations(range(len(open_)), count), key=lambda blocks: _cost(w, inverse, blocks, size))
        open_ = torch.zeros_like(open_).index_fill(0, torch.tensor(best, device=w.device), True)
    order = torch.zeros(count, dtype=torch.int64, device=w.device)
    costs = w.new_zeros(count)
    for step in range(count):
        cores = torch.linalg.inv(_diagonal_blocks(inverse, size)[open_])
        blocks = w.unflatten(1, (-1, size)).transpose(0, 1)[open_]
        each = ((blocks @ cores) * blocks).sum((1, 2))
        least = each.argmin()
        order[step] = at = open_.nonzero()[least, 0]
        costs[step] = each[least]
        own = slice(int(at) * size, (int(at) + 1) * size)
        share = cores[least] @ inverse[own]
        w = w - w[:, own] @ share
        inverse = inverse - inverse[:, own] @ share
        open_[at] = False
    return order, costs


def _cost(weight: Tensor, inverse: Tensor, blocks: Sequence[int], size: int) -> float:
    """What the removal of these `blocks` together costs."""
    columns = torch.cat([torch.arange(block * size, (block + 1) * size, device=weight.device) for block in blocks])
    gone = weight[:, columns]
    return float((gone * torch.linalg.solve(inverse[columns][:, columns], gone.T).T).sum())


def blocks_effort(shape: tuple[int, ...], count: int, size: int) -> Effort:
    """What `cheapest_blocks` takes: an inverse, the costs of all sets, and for each removal two products."""
    rows, columns = shape
    sets, gone = comb(columns // size, count), count * size
    tried = sets * (gone**3 + 2 * rows * gone**2) if sets <= _SETS else 0
    each = 2 * size * (rows + columns) * columns + 2 * rows * columns * size + columns * size**2
    return Effort(flops=columns**3 + tried + count * each, elements=count * (rows + columns) * columns)


def _diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    """[blocks, size, size] of `matrix` [columns, columns]."""
    blocks: Tensor = matrix.unflatten(1, (-1, size)).unflatten(0, (-1, size))
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
