"""The scale of a whole tensor, which NVFP4's blocks have no room for: in a tensor beside them, `blk.0.attn_q.scale`.

    X.scale         float32 [1], or [experts]: what a product with X is multiplied by; 1 where it is not there
    X.input_scale   of the same shape, in files made of ModelOpt's: how inputs are rounded to FP4 where that is done

Source: llama.cpp, October 2026: `src/llama-model.cpp`, load_tensors, for the names, and conversion/base.py,
_generate_nvfp4_tensors. No row of an embedding is multiplied by one, and no tensor but these.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from compress.formats.errors import InputError, RefusedError

_WEIGHT = ".weight"
_SCALED = re.compile(r"(blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_shexp|_exps)?)|output)\.weight")
_LARGEST = float(torch.finfo(torch.float32).max) / (6 * 448)  # times the largest block, it is a float32


def scale_name(weight: str) -> str:
    """The tensor that has the scale of `weight`."""
    return f"{weight.removesuffix(_WEIGHT)}.scale"


def has_scale(weight: str) -> bool:
    """Whether llama.cpp looks for a scale of the tensor `weight`."""
    return _SCALED.fullmatch(weight) is not None


def scales_beside(weight: str) -> tuple[str, ...]:
    """The names of the tensors that may lie beside `weight`, if its type leaves scales out."""
    return (scale_name(weight), f"{weight.removesuffix(_WEIGHT)}.input_scale") if has_scale(weight) else ()


def whole_scale(rows: Tensor) -> Tensor:
    """The one scale [1] of all `rows` [rows, 1]. Raises RefusedError if they differ."""
    if not bool((rows == rows[0]).all()):
        raise RefusedError("its rows have different tensor scales, and GGUF holds one", "requantize: true rounds anew")
    return rows[0].float()


def read_scale(name: str, values: Tensor, expert: int | None) -> float:
    """The scale of a tensor, or of one of its experts. Raises InputError for one that is no scale."""
    value = float(values[expert or 0])
    if not 0 < value <= _LARGEST:
        raise InputError(f"{name} is {value:g}, not the scale of a tensor", "the file is damaged: get another copy")
    return value
