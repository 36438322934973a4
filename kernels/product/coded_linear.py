"""A linear layer that keeps its weight as codes: what takes the place of `nn.Linear` where a model only computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from compress.kernels.product.packed import packed
from compress.kernels.qtensor import QTensor


class CodedLinear(nn.Module):
    """y = x·Ŵᵀ + b for `weight` [out, in] and `bias` [out] or None; x [..., in] of any floating-point type.

    Few rows of inputs are multiplied with packed codes, in bf16, where that is quicker; for more the weight is decoded,
    to the type of the inputs, and dropped again.
    """

    codes: Tensor

    def __init__(self, weight: QTensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.format = weight.format
        self.out_features, self.in_features = weight.shape
        self.register_buffer("codes", weight.codes)
        for name, value in weight.params.items():
            self.register_buffer(f"param_{name}", value)
        self._params = tuple(weight.params)
        self.bias = bias
        self._few = packed(weight)

    @property
    def quantized(self) -> QTensor:
        """The weight."""
        return QTensor(self.format, self.codes, {name: getattr(self, f"param_{name}") for name in self._params})

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] → [..., out], in the type of x."""
        count = x.numel() // self.in_features
        if self._few is None or count > self._few.most:
            return linear(x, self.quantized.dequantize().to(x.dtype), self.bias)
        y = self._few.product(x.reshape(count, self.in_features)).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else torch.add(y, self.bias)

    def extra_repr(self) -> str:
        """What `repr` tells of it."""
        return f"{self.in_features} → {self.out_features}, {self.format.name}"
