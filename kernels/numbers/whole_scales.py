"""Scales that are whole numbers beside a float16 of their super-block: s = d·k, k = lowest … highest."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.numbers.bounds import sign_kept, smallest

_MOST = torch.finfo(torch.float16).max
_LEAST = smallest(torch.float16)


def real_scales(d: Tensor, whole: Tensor) -> Tensor:
    """d·k [rows, groups] fp32 of `d` float16 [rows, super-blocks] and `whole` [rows, groups]; exact."""
    grouped = whole.view(*d.shape, -1)
    return (d.float().unsqueeze(-1) * grouped).flatten(1)


def moved_scales(d: Tensor, whole: Tensor, real: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """d and k for scales that have moved to `real` [rows, groups], each of the sign it had; NaN is one that has not.

    d becomes the least-squares fit to the k there are, or as large as the largest scale needs it. A super-block in
    which nothing moved keeps what it has; so does one whose d is 0. A scale other than 0 does not become 0.
    """
    before = real_scales(d, whole)
    kept = torch.where(real.isnan(), before, real).clamp(-_MOST * highest, _MOST * highest)
    grouped, wanted = whole.view(*d.shape, -1).float(), sign_kept(kept, before, 0.0).view(*d.shape, -1)
    fitted = (wanted * grouped).sum(-1) / grouped.square().sum(-1).clamp(min=1)
    sign = torch.where(d < 0, -1.0, 1.0)
    upward = wanted * sign.unsqueeze(-1)
    needed = upward.amax(-1) / highest
    if lowest:
        needed = torch.maximum(needed, upward.amin(-1) / lowest)
    size = torch.maximum(fitted * sign, needed).clamp(_LEAST, _MOST).half() * sign.half()
    nearest = (wanted / size.float().unsqueeze(-1)).round().clamp(lowest, highest)
    nearest = torch.where((nearest == 0) & (grouped != 0), grouped.sign(), nearest)
    stays = ((real.isnan() | (real == before)).view_as(grouped).all(-1)) | (d == 0)
    whole = torch.where(stays.unsqueeze(-1), grouped, nearest).to(whole.dtype).view_as(whole)
    return torch.where(stays, d, size), whole


def moved_minima(d: Tensor, whole: Tensor, real: Tensor, highest: int) -> tuple[Tensor, Tensor]:
    """d and k = 0 … highest for what has moved to `real` [rows, groups]: what is below 0 becomes 0."""
    before = real_scales(d, whole)
    wanted = torch.where(real.isnan(), before, real).clamp(0, _MOST * highest).view(*d.shape, -1)
    grouped = whole.view_as(wanted).float()
    fitted = (wanted * grouped).sum(-1) / grouped.square().sum(-1).clamp(min=1)
    size = torch.maximum(fitted, wanted.amax(-1) / highest).clamp(_LEAST, _MOST).half()
    nearest = (wanted / size.float().unsqueeze(-1)).round().clamp(0, highest)
    stays = (real.isnan() | (real == before)).view_as(wanted).all(-1)
    whole = torch.where(stays.unsqueeze(-1), grouped, nearest).to(whole.dtype).view_as(whole)
    return torch.where(stays, d, size), whole
