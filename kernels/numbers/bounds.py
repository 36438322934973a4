"""Where real parameters may go in training: the numbers that a type holds, never through zero."""

from __future__ import annotations

import torch
from torch import Tensor


def held(real: Tensor, dtype: torch.dtype) -> Tensor:
    """`real` as `dtype` holds it, its largest number in the place of infinity; NaN stays."""
    most = torch.finfo(dtype).max
    return real.clamp(-most, most).to(dtype)


def sign_kept(real: Tensor, before: Tensor, least: float) -> Tensor:
    """`real` with the sign of `before`, and `least` or more away from zero; what was nearer to it may stay so near."""
    sign = torch.where(before < 0, -1.0, 1.0)
    return torch.maximum(real * sign, before.abs().clamp(max=least)) * sign


def smallest(dtype: torch.dtype) -> float:
    """The smallest positive number, a subnormal one, of `dtype`."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
