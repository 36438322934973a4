"""Inputs times the transpose of a weight that is kept as codes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from compress.kernels.op import op
from compress.kernels.product.words import Words


@op
def multiply_codes(inputs: Tensor, weight: Words) -> Tensor:
    """`inputs` [n, columns] · Ŵᵀ → [n, rows], in the type of the inputs, which is also that of the decoded weight."""
    return linear(inputs, weight.values().to(inputs.dtype))
