"""One byte a weight: the formats `int-quantized` and `float-quantized` of compressed-tensors.

Source: compressed-tensors 0.20.0, compressors/naive_quantized/.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.compressed_tensors.storage import SCALE, Part, Shape, Storage, integer_misfit
from compress.formats.errors import InputError
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat, QTensor


class IntQuantized(Storage):
    """Integers of 2 to 8 bits in a byte each.

        X.weight             int8   [out, in]      code − 2^(bits−1)
        X.weight_scale       float  [out, groups]
        X.weight_zero_point  int8   [out, groups]  zero − 2^(bits−1); asymmetric only

    The value is scale·(weight − zero point).
    """

    def misfit(self, number_format: NumberFormat) -> str | None:
        return integer_misfit(number_format)

    def parts(self, shape: Shape, number_format: NumberFormat, scale_dtype: str) -> dict[str, TensorSpec]:
        assert isinstance(number_format, IntFormat)
        scales, _ = number_format.param_shapes(shape)["scale"]
        parts = {"weight": TensorSpec(shape, "int8"), SCALE: TensorSpec(scales, scale_dtype)}
        if number_format.zero == "integer":
            parts["weight_zero_point"] = TensorSpec(scales, "int8")
        return parts

    def encode(self, name: str, tensor: QTensor, scale_dtype: str) -> dict[str, Tensor]:
        assert isinstance(tensor.format, IntFormat)
        bits = tensor.format.bits
        parts = {
            "weight": _signed(tensor.codes, bits),
            SCALE: tensor.params["scale"].to(getattr(torch, scale_dtype)),
        }
        if tensor.format.zero == "integer":
            parts["weight_zero_point"] = _signed(tensor.params["zero"], bits)
        return parts

    def decode(self, name: str, shape: Shape, number_format: NumberFormat, part: Part) -> QTensor:
        assert isinstance(number_format, IntFormat)
        bits = number_format.bits
        params = {"scale": part(SCALE)}
        if number_format.zero == "integer":
            params["zero"] = _unsigned(name, part("weight_zero_point"), bits)
        return QTensor(number_format, _unsigned(name, part("weight"), bits), params)


class FloatQuantized(Storage):
    """FP8, E4M3FN.

        X.weight        float8_e4m3fn  [out, in]
        X.weight_scale  float          [1] per tensor, [out, 1] per channel, [⌈out/128⌉, ⌈in/128⌉] per block

    The value is scale·weight.
    """

    def misfit(self, number_format: NumberFormat) -> str | None:
        return None if isinstance(number_format, FloatFormat) else integer_misfit(number_format)

    def parts(self, shape: Shape, number_format: NumberFormat, scale_dtype: str) -> dict[str, TensorSpec]:
        assert isinstance(number_format, FloatFormat)
        scales = self.scale_shape(shape, number_format)
        return {"weight": TensorSpec(shape, "float8_e4m3fn"), SCALE: TensorSpec(scales, scale_dtype)}

    def scale_shape(self, shape: Shape, number_format: FloatFormat) -> Shape:
        """What the scales of a weight of this shape are stored as."""
        return (1,) if number_format.per == "tensor" else number_format.param_shapes(shape)["scale"][0]

    def encode(self, name: str, tensor: QTensor, scale_dtype: str) -> dict[str, Tensor]:
        assert isinstance(tensor.format, FloatFormat)
        scale = tensor.params["scale"].to(getattr(torch, scale_dtype))
        return {
            "weight": tensor.codes.view(torch.float8_e4m3fn),
            SCALE: scale.view(self.scale_shape(tensor.shape, tensor.format)),
        }

    def decode(self, name: str, shape: Shape, number_format: NumberFormat, part: Part) -> QTensor:
        scale = part(SCALE).float()
        if float(scale.min()) <= 0:
            raise InputError(f"{name} has a scale of {float(scale.min()):g}; those of FP8 are positive")
        codes = part("weight").view(torch.uint8)
        return QTensor(number_format, codes, {"scale": scale.view(number_format.param_shapes(shape)["scale"][0])})


def _signed(codes: Tensor, bits: int) -> Tensor:
    return (codes.short() - (1 << bits - 1)).to(torch.int8)


def _unsigned(name: str, values: Tensor, bits: int) -> Tensor:
    codes = values.short() + (1 << bits - 1)
    if int(codes.min()) < 0 or int(codes.max()) >= 1 << bits:
        raise InputError(f"{name} holds integers that {bits} bits do not")
    return codes.byte()
