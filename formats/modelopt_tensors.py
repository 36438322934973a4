"""How nvidia-modelopt stores linear layers and the scales of the cache in a Hugging Face checkpoint.

Source: nvidia-modelopt 0.47.0, torch/export/quant_utils.py; vLLM 0.32, quantization/modelopt.py, for the shapes
that are loaded.
"""

from __future__ import annotations

from compress.formats.compressed_tensors_plain import FloatQuantized
from compress.formats.compressed_tensors_storage import Shape
from compress.kernels.float_format import BLOCK, FloatFormat
from compress.kernels.qtensor import NumberFormat

_CACHE = {".k_scale": ".k_proj.k_scale", ".v_scale": ".v_proj.v_scale"}


class Float8(FloatQuantized):
    """FP8, E4M3FN.

        X.weight        float8_e4m3fn  [out, in]
        X.weight_scale  float32        [] per tensor, [out] per channel, [out/128, 1, in/128, 1] per block

    The value is scale·weight.
    """

    def misfit(self, number_format: NumberFormat) -> str | None:
        if isinstance(number_format, FloatFormat):
            return None
        return f"modelopt files hold FP8, not {number_format.name}; compressed-tensors holds integers, dense all"

    def scale_shape(self, shape: Shape, number_format: FloatFormat) -> Shape:
        rows, columns = number_format.param_shapes(shape)["scale"][0]
        return {"tensor": (), "channel": (rows,), "block": (rows, 1, columns, 1)}[number_format.per]


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
