"""The floating-point type that an export stores dense values in."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.kernels.numbers.int import IntFormat

FloatType = Literal["float32", "float16", "bfloat16"]


def stored_as(spec: TensorSpec, dtype: FloatType | None) -> TensorSpec:
    """The dense spec of a tensor once stored as `dtype`; integers, and everything if None, keep their own."""
    if dtype is None or not getattr(torch, spec.dtype).is_floating_point:
        return replace(spec, format=None)
    return replace(spec, dtype=dtype, format=None)


def compute_dtype(model: ModelSpec) -> FloatType:
    """What engines compute a quantized model in: bfloat16 where inputs are rounded, or weights are floats.

    vLLM 0.32 has int8 kernels for CPUs in bfloat16 only, and transformers 5.23 decodes FP4 to bfloat16 only.
    Weights that are integers alone are computed in float16 everywhere.
    """
    integers = all(issubclass(number_format, IntFormat) for number_format in model.formats)
    return "float16" if integers and not model.activations else "bfloat16"


def cast(name: str, values: Tensor, dtype: str) -> Tensor:
    """`values` as `dtype`, a torch dtype name. Raises RefusedError, by name, if a value becomes infinite."""
    target: torch.dtype = getattr(torch, dtype)
    if target == values.dtype:
        return values
    if target.is_floating_point and values.numel():
        largest = max(abs(float(extreme)) for extreme in values.float().aminmax())
        if largest > torch.finfo(target).max:
            raise RefusedError(
                f"tensor {name} holds {largest:g}, and {dtype} ends at {torch.finfo(target).max:g}",
                "export with dtype: bfloat16 or float32",
            )
    return values.to(target)


def scale_misfit(found: IntFormat) -> str | None:
    """Why a container whose scales are float16 cannot hold those of `found`, or None if it can.

    float16 has every bit of a bfloat16 from 2^-17 to 65504; `half_scales` refuses others as they are written.
    """
    if found.scale_dtype != "float32":
        return None
    return "its scales are float32, and here they are float16; compressed-tensors and dense files hold them"


def exact_half(values: Tensor) -> Tensor | None:
    """`values` as float16; None if it does not hold them exactly."""
    half = values.half()
    return half if torch.equal(half.float(), values.float()) else None


def half_scales(where: str, scales: Tensor) -> Tensor:
    """Scales as float16. Raises RefusedError, naming `where`, if it does not hold them exactly."""
    half = exact_half(scales)
    if half is None:
        raise RefusedError(
            f"{where}: float16 does not hold its scales ({scales.dtype}) exactly",
            "export with dialect: compressed-tensors, or to dense and quantize that",
        )
    return half
