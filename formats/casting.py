"""The floating-point type that an export stores dense values in."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.errors import RefusedError

FloatType = Literal["float32", "float16", "bfloat16"]


def stored_as(spec: TensorSpec, dtype: FloatType | None) -> TensorSpec:
    """The dense spec of a tensor once stored as `dtype`; integers, and everything if None, keep their own."""
    if dtype is None or not getattr(torch, spec.dtype).is_floating_point:
        return replace(spec, format=None)
    return replace(spec, dtype=dtype, format=None)


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
