"""Second moments of a linear layer's inputs; XᵀX is what GPTQ (arXiv 2210.17323) calls the Hessian."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.op import op

_BLOCK = 256
_CHUNK = 8192


@op
def add_hessian(total: Tensor, inputs: Tensor) -> None:
    """Add XᵀX to the upper triangle of `total` [columns, columns] fp32; see `fill_lower`.

    `inputs` X [tokens, columns] is upcast to fp32. Half the triangle is half the work: blocks of columns are
    multiplied with the columns from their own on. What is left of the diagonal, inside its blocks aside, is
    not touched.
    """
    for chunk in torch.split(inputs, _CHUNK):
        x = chunk.float()
        for start in range(0, x.shape[1], _BLOCK):
            stop = start + _BLOCK
            total[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])


def fill_lower(total: Tensor) -> None:
    """Make `total` [columns, columns] symmetric, in place: its upper triangle is mirrored."""
    total.triu_()
    total.add_(total.triu(1).T)


def shrunk(hessian: Tensor, share: float) -> Tensor:
    """`hessian` [columns, columns] with all but its diagonal smaller by `share`, from 0 (as it is) to 1 (all is 0).

    What few tokens say of pairs of inputs is chance in part, and this the estimate of a covariance with a smaller
    expected error (Ledoit and Wolf 2004, with the diagonal for a target).
    """
    return torch.lerp(hessian, hessian.diagonal().diag_embed(), share) if share else hessian


def add_cross(total: Tensor, reference: Tensor, inputs: Tensor) -> None:
    """Add (X − X̂)ᵀX̂ to `total` [columns, columns] fp32, X `reference` and X̂ `inputs`, both [tokens, columns]."""
    for part, chunk in zip(torch.split(reference, _CHUNK), torch.split(inputs, _CHUNK)):
        x = chunk.float()
        total.addmm_((part.float() - x).T, x)


def hessian_effort(tokens: int, columns: int) -> Effort:
    """What `add_hessian` takes: the blocks of the upper triangle."""
    return Effort(flops=tokens * columns * (columns + _BLOCK))


def cross_effort(tokens: int, rows: int, columns: int) -> Effort:
    """What a product of inputs [tokens, columns] with a difference [tokens, rows] takes, as in `add_cross`."""
    return Effort(flops=2 * tokens * rows * columns, elements=3 * tokens * rows)
