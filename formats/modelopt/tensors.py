"""How nvidia-modelopt stores linear layers and the scales of the cache in a Hugging Face checkpoint.

Source: nvidia-modelopt 0.47.0, torch/export/quant_utils.py; vLLM 0.32, quantization/modelopt.py, for the shapes
that are loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.compressed_tensors.float4 import (
    NVFP4,
    nvfp4_tensor,
    pack_halves,
    unpack_halves,
    whole_scale,
)
from compress.formats.compressed_tensors.plain import FloatQuantized
from compress.formats.compressed_tensors.storage import SCALE, Part, Shape, Storage
from compress.kernels.numbers.float import BLOCK, FloatFormat
from compress.kernels.qtensor import NumberFormat, QTensor

TENSOR_SCALE = "weight_scale_2"

_CACHE = {".k_scale": ".k_proj.k_scale", ".v_scale": ".v_proj.v_scale"}


class Float8(FloatQuantized):
    """FP8, E4M3FN.

        X.weight        float8_e4m3fn  [out, in]
        X.weight_scale  float32        [] per tensor, [out] per channel, [out/128, 1, in/128, 1] per block

    The value is scale·weight.
    """

    def scale_shape(self, shape: Shape, number_format: FloatFormat) -> Shape:
        rows, columns = number_format.param_shapes(shape)["scale"][0]
        return {"tensor": (), "channel": (rows,), "block": (rows, 1, columns, 1)}[number_format.per]


class Float4(Storage):
    """NVFP4.

        X.weight          uint8          [out, in/2]   two codes a byte, the low one first
        X.weight_scale    float8_e4m3fn  [out, in/16]
        X.weight_scale_2  float32        []

    The value is weight_scale_2·weight_scale·code.
    """

    def misfit(self, number_format: NumberFormat) -> str | None:
        return None if number_format == NVFP4 else f"{number_format.name} is not {NVFP4.name}"

    def parts(self, shape: Shape, number_format: NumberFormat, scale_dtype: str) -> dict[str, TensorSpec]:
        return {
            "weight": TensorSpec((shape[0], shape[1] // 2), "uint8"),
            SCALE: TensorSpec(NVFP4.param_shapes(shape)["scale"][0], "float8_e4m3fn"),
            TENSOR_SCALE: TensorSpec((), scale_dtype),
        }

    def encode(self, name: str, tensor: QTensor, scale_dtype: str) -> dict[str, Tensor]:
        return {
            "weight": pack_halves(tensor.codes),
            SCALE: tensor.params["scale"].view(torch.float8_e4m3fn),
            TENSOR_SCALE: whole_scale(name, tensor).to(getattr(torch, scale_dtype)).view(()),
        }

    def decode(self, name: str, shape: Shape, number_format: NumberFormat, part: Part) -> QTensor:
        return nvfp4_tensor(name, unpack_halves(part("weight")), part(SCALE), part(TENSOR_SCALE))


def storage_of(number_format: NumberFormat) -> Storage:
    """How weights of one of the algorithms' number formats are stored."""
    return Float8() if isinstance(number_format, FloatFormat) else Float4()


def shape_misfit(shape: Shape, number_format: NumberFormat) -> str | None:
    """Why a weight of this shape cannot be stored, or None if it can."""
    per_block = isinstance(number_format, FloatFormat) and number_format.per == "block"
    if per_block and any(extent % BLOCK for extent in shape):
        return f"its {list(shape)} weights do not divide into blocks of {BLOCK} × {BLOCK}: use `per: channel`"
    return number_format.misfit(shape)


def stored_name(name: str) -> str:
    """Where a scale of the cache, `<attention>.k_scale` or `.v_scale`, stands in the file: at a projection."""
    attention, dot, kind = name.rpartition(".")
    return attention + _CACHE[dot + kind]


def program_name(stored: str) -> str:
    """The opposite of `stored_name`; every other name as it is."""
    for ours, theirs in _CACHE.items():
        if stored.endswith(theirs):
            return stored.removesuffix(theirs) + ours
    return stored
