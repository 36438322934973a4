"""What a kernel is compared on, and how it is compiled: for tests/kernels/gpu and what they gather."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """What an op is called with, a fresh copy each time; what it left behind, or gave; and that in float64."""

    name: str
    arguments: Callable[[], tuple[Any, ...]]
    result: Callable[[tuple[Any, ...], Any], Tensor]
    truth: Tensor


FUSED = {"enable_fp_fusion": True}
"""Options of a kernel that has no others."""


@dataclass(frozen=True)
class Build:
    """How a kernel is compiled: types by argument, which of them 16 divides, constants, and options.

    `tensor_cores`: whether it is to use them.
    """

    kernel: Any
    signature: dict[str, str]
    even: set[str]
    constants: dict[str, Any]
    options: dict[str, Any]
    tensor_cores: bool = True


def pointer(tensor: Tensor | None) -> str:
    """Triton's word for the type of a tensor's address; what is not there is a constant."""
    if tensor is None:
        return "constexpr"
    kinds = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8"}
    return f"*{kinds.get(tensor.dtype) or str(tensor.dtype).replace('torch.int', 'i')}"
