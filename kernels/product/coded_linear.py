"""A linear layer that keeps its weight as codes: what takes the place of `nn.Linear` where a model only computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from compress.kernels.fallbacks import count
from compress.kernels.product.multiply_codes import multiply_codes
from compress.kernels.product.packed import packed
from compress.kernels.product.words import Words, words_of
from compress.kernels.qtensor import QTensor


class CodedLinear(nn.Module):
    """y = x·Ŵᵀ + b for `weight` [out, in] and `bias` [out] or None; x [..., in] of any floating-point type.

    A GPU holds codes in words alone, and multiplies with them (`multiply_codes`). On a CPU few rows of inputs are
    multiplied with the codes where that is quicker, in bf16 (`packed`); for more the weight is decoded, to the type of
    the inputs, and dropped again. The module stays on the device of `weight`.
    """

    def __init__(self, weight: QTensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._name = weight.format.name
        self._weight = _held(weight)
        self._few = packed(weight)

    @property
    def words(self) -> Words | None:
        """The weight as a GPU reads it; None on a CPU, and where it cannot be had so."""
        return self._weight if isinstance(self._weight, Words) else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out], in the type of x."""
        rows = x.reshape(-1, self.in_features)
        if isinstance(self._weight, Words):
            y = multiply_codes(rows, self._weight)
        elif self._few is not None and len(rows) <= self._few.most:
            y = self._few.product(rows)
        else:
            return linear(x, self._weight.dequantize().to(x.dtype), self.bias)
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else torch.add(y, self.bias)

    def extra_repr(self) -> str:
        """What `repr` tells of it."""
        return f"{self.in_features} → {self.out_features}, {self._name}"


def _held(weight: QTensor) -> QTensor | Words:
    """As its device reads it best; counted, where a GPU can not read the codes."""
    if weight.codes.device.type == "cpu":
        return weight
    words = words_of(weight)
    if words is None:
        count(f"products with {weight.format.name} decode it each time: no kernel reads codes of such groups")
    return words or weight
