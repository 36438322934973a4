"""Make up for input channels that were taken from a linear layer: least squares of its outputs on those kept.

With k the kept and d the dropped columns, min over W' of ‖W'·X_k − W·X‖² + λ·‖W' − W_k‖² is

    W' = W_k + W_d·H_dk·(H_kk + λI)⁻¹,        which for λ → 0 is        W·H_:k·H_kk⁻¹.

The error that remains is the sum of the costs of kernels/measure/channels.py, if it is measured with the same λ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.measure.channels import factor


def repair(weight: Tensor, hessian: Tensor, kept: Tensor, damp: float = 0.01) -> Tensor:
    """W' [rows, kept] fp32 of `weight` [rows, columns] for the ascending indices `kept` int64 of its columns.

    `hessian` Σxᵀx [columns, columns] fp32; λ is `damp` times the mean of its diagonal over the kept columns. Where the
    dropped columns are zero the others stay as they are, to the bit.
    """
    dropped = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device).index_fill(0, kept, False)
    outputs = weight[:, dropped] @ hessian[dropped][:, kept]
    lower = factor(hessian[kept][:, kept], damp)
    return weight[:, kept] + torch.cholesky_solve(outputs.T, lower).T


def repair_effort(shape: tuple[int, ...], kept: int) -> Effort:
    """What `repair` takes: a product, a factorization, two triangular systems."""
    rows, columns = shape
    flops = 2 * rows * (columns - kept) * kept + kept**3 / 3 + 4 * rows * kept**2
    return Effort(flops=flops, elements=3 * columns * kept)
