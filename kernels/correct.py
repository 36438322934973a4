"""Targets corrected to the full-precision stream: make up for what earlier layers have lost.

With x the input that the untouched model would give and x̂ the one that the quantized model gives, the best
replacement of W on inputs x̂ solves min ‖W'X̂ − WX‖² + λ·m·‖W' − W‖², m the mean of diag(X̂X̂ᵀ):

    W' = W + W·(X − X̂)X̂ᵀ·(X̂X̂ᵀ + λ·m·I)⁻¹.

GPTAQ (arXiv 2504.02692) is the published relative; it corrects inside the column loop.
"""

from __future__ import annotations

import torch
from torch import Tensor


def corrected_target(weight: Tensor, drift: Tensor, hessian: Tensor, ridge: float = 0.1) -> Tensor:
    """W' [rows, columns] fp32 for `weight` W, `drift` Σ(x − x̂)ᵀx̂ and `hessian` Σx̂ᵀx̂, [columns, columns].

    Where H cannot be factored (all inputs dead), the weight is returned as it is.
    """
    regular = hessian.clone()
    regular.diagonal().add_(ridge * float(hessian.diagonal().mean()))
    lower, info = torch.linalg.cholesky_ex(regular)
    if int(info) != 0:
        return weight
    return weight + torch.cholesky_solve(drift.T @ weight.T, lower).T
