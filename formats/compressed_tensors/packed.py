"""Integers of any width in 32-bit words: the format `pack-quantized` of compressed-tensors.

Source: compressed-tensors 0.20.0, compressors/pack_quantized/.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.formats.base import TensorSpec
from compress.formats.compressed_tensors.storage import SCALE, Part, Shape, Storage, integer_misfit
from compress.kernels.numbers.int import IntFormat
from compress.kernels.pack import pack, unpack
from compress.kernels.qtensor import NumberFormat, QTensor

_WORD = 32


class PackQuantized(Storage):
    """Integers of 2 to 8 bits in 32-bit words.

        X.weight_packed      int32  [out, ⌈in·bits/32⌉]      each row is one stream of bits, lowest bit first
        X.weight_scale       float  [out, groups]
        X.weight_shape       int64  [2]                      out, in
        X.weight_zero_point  int32  [⌈out·bits/32⌉, groups]  asymmetric only; packed along the outputs

    The value is scale·(code − zero), or scale·(code − 2^(bits−1)).
    """

    def misfit(self, number_format: NumberFormat) -> str | None:
        return integer_misfit(number_format)

    def parts(self, shape: Shape, number_format: NumberFormat, scale_dtype: str) -> dict[str, TensorSpec]:
        assert isinstance(number_format, IntFormat)
        (outputs, inputs), bits = shape, number_format.bits
        scales, _ = number_format.param_shapes(shape)["scale"]
        parts = {
            "weight_packed": TensorSpec((outputs, words(inputs, bits)), "int32"),
            SCALE: TensorSpec(scales, scale_dtype),
            "weight_shape": TensorSpec((2,), "int64"),
        }
        if number_format.zero == "integer":
            parts["weight_zero_point"] = TensorSpec((words(outputs, bits), scales[1]), "int32")
        return parts

    def encode(self, name: str, tensor: QTensor, scale_dtype: str) -> dict[str, Tensor]:
        assert isinstance(tensor.format, IntFormat)
        bits = tensor.format.bits
        parts = {
            "weight_packed": pack_padded(tensor.codes.T, bits).T.contiguous(),
            SCALE: tensor.params["scale"].to(getattr(torch, scale_dtype)),
            "weight_shape": torch.tensor(tensor.shape),
        }
        if tensor.format.zero == "integer":
            parts["weight_zero_point"] = pack_padded(tensor.params["zero"], bits)
        return parts

    def decode(self, name: str, shape: Shape, number_format: NumberFormat, part: Part) -> QTensor:
        assert isinstance(number_format, IntFormat)
        bits = number_format.bits
        params = {"scale": part(SCALE)}
        if number_format.zero == "integer":
            params["zero"] = unpack_padded(part("weight_zero_point"), bits, shape[0])
        codes = unpack_padded(part("weight_packed").T, bits, shape[1]).T.contiguous()
        return QTensor(number_format, codes, params)


def words(count: int, bits: int) -> int:
    """How many 32-bit words hold `count` codes."""
    return -(-count * bits // _WORD)


def pack_padded(codes: Tensor, bits: int) -> Tensor:
    """codes [n, m] uint8 → words [⌈n·bits/32⌉, m] int32: kernels/pack.py for any n, what is left over filled with 0."""
    count = codes.shape[0]
    filled = pad(codes, (0, 0, 0, -count % _WORD))
    return pack(filled, bits)[: words(count, bits)]


def unpack_padded(packed: Tensor, bits: int, count: int) -> Tensor:
    """words [⌈n·bits/32⌉, m] int32 → codes [n, m] uint8, n = `count`."""
    filled = pad(packed, (0, 0, 0, -packed.shape[0] % bits))
    return unpack(filled, bits)[:count]
