"""A linear layer that keeps its weight as codes: what takes the place of `nn.Linear` where a model only computes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from compress.kernels.product.multiply_codes import multiply_codes
from compress.kernels.product.packed import Few, packed
from compress.kernels.product.words import Words, words_of
from compress.kernels.qtensor import QTensor

MOST_ON_GPU = 64
"""Inputs at a time up to which codes are read by the product itself; a decoded weight is quicker with more."""


class CodedLinear(nn.Module):
    """y = x·Ŵᵀ + b for `weight` [out, in] and `bias` [out] or None; x [..., in] of any floating-point type.

    Few rows of inputs are multiplied with the codes: on a GPU by `multiply_codes`, on a CPU where that is quicker, in
    bf16 (`packed`). For more the weight is decoded, to the type of the inputs, and dropped again. A GPU holds codes
    in words alone; the module stays on the device of `weight`.
    """

    def __init__(self, weight: QTensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._name = weight.format.name
        words = None if weight.codes.device.type == "cpu" else words_of(weight)
        self._weight: QTensor | Words = words or weight
        self._few = Few(partial(multiply_codes, weight=words), MOST_ON_GPU) if words else packed(weight)

    @property
    def most(self) -> int:
        """Up to how many rows of inputs are multiplied with the codes."""
        return 0 if self._few is None else self._few.most

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out], in the type of x."""
        count = x.numel() // self.in_features
        if self._few is None or count > self.most:
            return linear(x, self._decoded().to(x.dtype), self.bias)
        y = self._few.product(x.reshape(count, self.in_features)).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else torch.add(y, self.bias)

    def _decoded(self) -> Tensor:
        return self._weight.values() if isinstance(self._weight, Words) else self._weight.dequantize()

    def extra_repr(self) -> str:
        """What `repr` tells of it."""
        return f"{self.in_features} → {self.out_features}, {self._name}"
