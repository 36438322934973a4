"""Scales and zero points of integer groups: from the extreme values, or searched against an importance.

A group w [n] is stood for by ŵ = s·c, c whole numbers of an interval that holds zero (middle, integer), or by
ŵ = s·q + m (real). For fixed codes the best scale is a weighted least-squares fit in closed form:
s = Σhwc / Σhc², and it takes the error Σh(w − ŵ)² down by (Σhwc)² / Σhc². So a candidate scale is only a way
to reach codes, and candidates are compared by that gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Zero = Literal["middle", "integer", "real"]
FloatParams = dict[str, Tensor]

_SHRINK = tuple(1.2 - 0.05 * step for step in range(15))


def extreme_params(groups: Tensor, levels: int, zero: Zero) -> FloatParams:
    """The textbook parameters [...] fp32 of `groups` [..., n]: the extreme values are in reach.

    middle: s = 2·max|w| / (levels − 1), as GPTQ's reference (arXiv 2210.17323) has it.
    integer: s = (max(w, 0) − min(w, 0)) / (levels − 1), z = round(−min / s); a z of 0 becomes a negative scale
    with z = levels − 1, which stands for the same values.
    real: s = (max w − min w) / (levels − 1), m = min w.
    A group of equal values (middle, integer: of zeros) has the scale 1.
    """
    low, high = groups.amin(-1), groups.amax(-1)
    if zero == "middle":
        high = torch.maximum(high, -low)
        low = -high
    elif zero == "integer":
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (levels - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    if zero == "real":
        return {"scale": scale, "minimum": low}
    if zero == "middle":
        return {"scale": scale}
    return _positive_zero(scale, (-low / scale).round().clamp(0, levels - 1), levels)


def _positive_zero(scale: Tensor, offset: Tensor, levels: int) -> FloatParams:
    """s·(q − 0) is −s·(q' − (levels − 1)) with q' = levels − 1 − q: the same values, and z is not 0."""
    flip = offset == 0
    return {"scale": torch.where(flip, -scale, scale), "zero": torch.where(flip, levels - 1.0, offset)}


def searched_params(groups: Tensor, importance: Tensor, levels: int, zero: Zero) -> FloatParams:
    """Parameters [rows, groups] fp32 with a small Σ importance·(w − ŵ)².

    `groups` [rows, groups, n] fp32; `importance` [1, groups, n] fp32 ≥ 0.
    """
    if zero == "real":
        return _search_line(groups, importance, levels)
    best = extreme_params(groups, levels, zero)
    gain = torch.full_like(best["scale"], -1.0)
    weighted = groups * importance
    for start, low, high in _intervals(groups, levels, zero):
        codes = (groups / start.unsqueeze(-1)).round_()
        codes = torch.minimum(torch.maximum(codes, low.unsqueeze(-1)), high.unsqueeze(-1))
        product = (weighted * codes).sum(-1)
        power = (codes.square_().mul_(importance)).sum(-1)
        candidate = product.square() / power
        better = candidate > gain
        gain = torch.where(better, candidate, gain)
        best["scale"] = torch.where(better, product / power, best["scale"])
        if zero == "integer":
            best["zero"] = torch.where(better, -low, best["zero"])
    return best if zero == "middle" else _positive_zero(best["scale"], best["zero"], levels)


def _intervals(groups: Tensor, levels: int, zero: Zero) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Candidates: a starting scale and the lowest and highest multiple of it, each [rows, groups]."""
    plain = extreme_params(groups, levels, zero)
    for shrink in _SHRINK:
        if zero == "middle":
            half = torch.full_like(plain["scale"], levels / 2)
            yield plain["scale"] * shrink, -half, half - 1
            yield plain["scale"] * -shrink, -half, half - 1
        else:
            for step in (-1, 0, 1):
                offset = (plain["zero"] + step).clamp(0, levels - 1)
                yield plain["scale"] * shrink, -offset, levels - 1 - offset


def _search_line(groups: Tensor, importance: Tensor, levels: int) -> FloatParams:
    """Real minimum: codes from a shrunk range, then the weighted straight line through them."""
    plain = extreme_params(groups, levels, "real")
    span = plain["scale"] * (levels - 1)
    best, gain = dict(plain), torch.full_like(span, -1.0)
    total = importance.sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    mean = (groups * importance).sum(-1) / total
    centred = (groups - mean.unsqueeze(-1)).mul_(importance)
    for low in (0.0, 0.05, 0.1, 0.15, 0.2):
        for high in (0.0, 0.05, 0.1, 0.15, 0.2):
            start = (span * (1 - low - high)).div_(levels - 1).unsqueeze(-1)
            codes = (groups - (plain["minimum"] + span * low).unsqueeze(-1)).div_(start).round_()
            codes.clamp_(0, levels - 1)
            middle = (codes * importance).sum(-1) / total
            product = (codes * centred).sum(-1)
            power = codes.sub_(middle.unsqueeze(-1)).square_().mul_(importance).sum(-1)
            candidate = product.square() / power
            better = candidate > gain
            gain = torch.where(better, candidate, gain)
            scale = product / power
            best["scale"] = torch.where(better, scale, best["scale"])
            best["minimum"] = torch.where(better, mean - scale * middle, best["minimum"])
    return best
