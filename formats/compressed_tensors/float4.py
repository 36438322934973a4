"""FP4 in blocks, two codes a byte: the formats `mxfp4-pack-quantized` and `nvfp4-pack-quantized` of compressed-tensors.

Source: compressed-tensors 0.20.0, compressors/mxfp4/ and compressors/nvfp4/.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.compressed_tensors.storage import SCALE, Part, Shape, Storage, integer_misfit
from compress.formats.errors import InputError, RefusedError
from compress.kernels.numbers.float import FP8_MAX
from compress.kernels.numbers.float4 import TOP_EXPONENT, Float4Format
from compress.kernels.qtensor import NumberFormat, QTensor

MXFP4, NVFP4 = Float4Format("mxfp4"), Float4Format("nvfp4")
_CODES = "weight_packed"
_DIVISOR = "weight_global_scale"


class MXFP4Packed(Storage):
    """MXFP4.

        X.weight_packed  uint8  [out, in/2]   two codes a byte, the low one first
        X.weight_scale   uint8  [out, in/32]

    The value is 2^(scale − 127)·code. Scales are 1 … 252; the library gives 0 to blocks of zeros alone.
    """

    def misfit(self, number_format: NumberFormat) -> str | None:
        return None if number_format == MXFP4 else integer_misfit(number_format)

    def parts(self, shape: Shape, number_format: NumberFormat, scale_dtype: str) -> dict[str, TensorSpec]:
        return {_CODES: _packed(shape), SCALE: TensorSpec(MXFP4.param_shapes(shape)["scale"][0], "uint8")}

    def encode(self, name: str, tensor: QTensor, scale_dtype: str) -> dict[str, Tensor]:
        return {_CODES: pack_halves(tensor.codes), SCALE: tensor.params["scale"]}

    def decode(self, name: str, shape: Shape, number_format: NumberFormat, part: Part) -> QTensor:
        codes, scale = unpack_halves(part(_CODES)), part(SCALE)
        zeros = (codes & 7 == 0).unflatten(1, (-1, MXFP4.block)).all(-1)
        scale = torch.where(zeros, scale.clamp(min=1), scale)
        if int(scale.min()) < 1 or int(scale.max()) > TOP_EXPONENT:
            raise InputError(f"{name} has exponents outside 1 … {TOP_EXPONENT}, which are those that are read")
        return QTensor(MXFP4, codes, {"scale": scale})


class NVFP4Packed(Storage):
    """NVFP4.

        X.weight_packed        uint8          [out, in/2]   two codes a byte, the low one first
        X.weight_scale         float8_e4m3fn  [out, in/16]
        X.weight_global_scale  float32        [1]           what is divided by

    The value is scale/global scale·code.
    """

    def misfit(self, number_format: NumberFormat) -> str | None:
        return None if number_format == NVFP4 else integer_misfit(number_format)

    def parts(self, shape: Shape, number_format: NumberFormat, scale_dtype: str) -> dict[str, TensorSpec]:
        return {
            _CODES: _packed(shape),
            SCALE: TensorSpec(NVFP4.param_shapes(shape)["scale"][0], "float8_e4m3fn"),
            _DIVISOR: TensorSpec((1,), "float32"),
        }

    def encode(self, name: str, tensor: QTensor, scale_dtype: str) -> dict[str, Tensor]:
        return {
            _CODES: pack_halves(tensor.codes),
            SCALE: tensor.params["scale"].view(torch.float8_e4m3fn),
            _DIVISOR: _divisor(name, whole_scale(name, tensor)),
        }

    def decode(self, name: str, shape: Shape, number_format: NumberFormat, part: Part) -> QTensor:
        return nvfp4_tensor(name, unpack_halves(part(_CODES)), part(SCALE), 1 / part(_DIVISOR))


def nvfp4_tensor(name: str, codes: Tensor, scale: Tensor, whole: Tensor) -> QTensor:
    """An NVFP4 weight: codes uint8 [out, in], scales E4M3 [out, in/16] and the tensor's one scale, float32.

    Raises InputError for scales that are not positive, and for a tensor's scale that leaves the normal numbers.
    """
    if float(scale.float().min()) <= 0:
        raise InputError(f"{name} has scales that are not positive; those of {NVFP4.name} are")
    tensor_scale, numbers = float(whole), torch.finfo(torch.float32)
    if not numbers.tiny <= tensor_scale <= numbers.max / (6 * FP8_MAX):
        raise InputError(f"{name} has the scale {tensor_scale:g} for the whole tensor, which is out of range")
    rows = whole.reshape(1, 1).repeat(len(codes), 1)
    return QTensor(NVFP4, codes, {"scale": scale.view(torch.uint8), "tensor_scale": rows})


def whole_scale(name: str, tensor: QTensor) -> Tensor:
    """The one scale float32 [1] of the NVFP4 weight `name`. Raises RefusedError if its rows differ."""
    rows = tensor.params["tensor_scale"]
    if not bool((rows == rows[0]).all()):
        raise RefusedError(f"{name}: its rows have different tensor scales, and files hold one")
    return rows[0]


def pack_halves(codes: Tensor) -> Tensor:
    """codes uint8 [rows, columns] of 4 bits → [rows, columns / 2], the low half of a byte first."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def unpack_halves(packed: Tensor) -> Tensor:
    """The opposite of `pack_halves`."""
    return torch.stack([packed & 15, packed >> 4], 2).flatten(1)


def _packed(shape: Shape) -> TensorSpec:
    return TensorSpec((shape[0], shape[1] // 2), "uint8")


def _divisor(name: str, scale: Tensor) -> Tensor:
    """The float32 [1] whose reciprocal is `scale`, as that of a power of two always is. Raises RefusedError without."""
    near = 1 / scale
    for found in (near, near.nextafter(torch.zeros(1)), near.nextafter(2 * near)):
        if bool(1 / found == scale):
            return found
    raise RefusedError(
        f"{name}: compressed-tensors files divide by its tensor scale; no float32 stands for 1/{float(scale):g}",
        "export dialect: modelopt, which multiplies, or quantize again with the pass nvfp4, whose scales are exact",
    )
