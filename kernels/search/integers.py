"""Scales and zero points of integer groups: from the extreme values, or searched against an importance.

A group w [n] is stood for by ŵ = s·(q − z) or ŵ = s·q + m, q = 0 … levels − 1. For fixed codes the best
s (and m) is a weighted least-squares fit in closed form, which takes Σh·(w − ŵ)² down by (Σh·w·c)² / Σh·c²
(c = q − z; or c = q and w less their weighted means). So a candidate is only a way to reach codes: candidates
are compared by that gain, and the winner's codes are fitted once more.

The mirror: s·(q − z) and −s·(q' − (levels − 1 − z)) are the same grid. It lets a middle grid, −8 … 7, be
turned to reach further up than down, and spares an integer zero point the 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Zero = Literal["middle", "integer", "real"]
FloatParams = dict[str, Tensor]

_WIDEST = 1.1
_TRIALS = 6


def extreme_params(groups: Tensor, levels: int, zero: Zero) -> FloatParams:
    """The textbook parameters [...] fp32 of `groups` [..., n]: the extreme values are in reach.

    middle: s = −w / (levels / 2), w the weight that is largest in absolute value: it gets the outermost code,
    exactly (the rule of GGML's Q4_0). GPTQ's reference code has 2·max|w| / (levels − 1), where w lies on a tie.
    integer: s = (max(w, 0) − min(w, 0)) / (levels − 1), z = round(−min(w, 0) / s), mirrored where that is 0.
    real: s = (max w − min w) / (levels − 1), m = min w.
    A group whose range is empty has the scale 1.
    """
    low, high = groups.amin(-1), groups.amax(-1)
    if zero == "middle":
        scale = torch.where(high > -low, high, low) / -(levels / 2)
        return {"scale": torch.where(scale == 0, 1.0, scale)}
    if zero == "integer":
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (levels - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    if zero == "real":
        return {"scale": scale, "minimum": low}
    return _without_zero(scale, (-low / scale).round_().clamp_(0, levels - 1), levels)


def searched_params(groups: Tensor, importance: Tensor, levels: int, zero: Zero) -> FloatParams:
    """Parameters [rows, groups] fp32 with a small Σ importance·(w − ŵ)².

    `groups` [rows, groups, n] fp32; `importance` [1, groups, n] fp32 ≥ 0. Where nothing is gained (a group or
    its importance is zero) they are those that the search began with.
    """
    if zero == "real":
        return _search_line(groups, importance, levels)
    return _search_multiples(groups, importance, levels, zero)


class _Best:
    """Of the candidates offered, the one with the largest gain, group by group."""

    def __init__(self, params: FloatParams) -> None:
        self.params = {name: value.clone() for name, value in params.items()}
        self._gain = torch.zeros_like(params["scale"])

    def offer(self, product: Tensor, power: Tensor, **params: Tensor | int) -> None:
        """A candidate whose gain is product² / power; all [rows, groups]."""
        better = product.square() > self._gain * power
        self._gain = torch.where(better, product.square() / power, self._gain)
        for name, value in params.items():
            self.params[name] = torch.where(better, value, self.params[name])


def _search_multiples(groups: Tensor, importance: Tensor, levels: int, zero: Zero) -> FloatParams:
    """Middle and integer: a middle grid is an integer one with z = levels / 2 or, mirrored, one less."""
    plain = extreme_params(groups, levels, zero)
    start = plain["scale"]
    weighted = groups * importance
    offsets: Sequence[Tensor | int] = (levels // 2, levels // 2 - 1)
    if zero == "middle":
        start = start.abs() * (levels / (levels - 1))  # where both ends reach equally far
    else:
        offsets = [(plain["zero"] + step).clamp_(0, levels - 1) for step in (0, -1, 1)]
    best = _Best({"scale": start, "zero": torch.zeros_like(start) + offsets[0]})

    def attempt(scale: Tensor, offsets: Sequence[Tensor | int]) -> None:
        multiples = (groups / scale.unsqueeze(-1)).round_()
        for offset in offsets:
            codes = _clip(multiples, offset, levels)
            product = (weighted * codes).sum(-1)
            power = codes.square_().mul_(importance).sum(-1)
            best.offer(product, power, scale=product / power, zero=offset)

    for shrink in shrinks(levels):
        attempt(start * shrink, offsets)
    attempt(best.params["scale"], [best.params["zero"]])
    if zero == "middle":
        mirrored = best.params["zero"] != levels // 2
        return {"scale": torch.where(mirrored, -best.params["scale"], best.params["scale"])}
    return _without_zero(best.params["scale"], best.params["zero"], levels)


def _clip(multiples: Tensor, offset: Tensor | int, levels: int) -> Tensor:
    """`multiples` [rows, groups, n] brought into −offset … levels − 1 − offset."""
    if isinstance(offset, int):
        return multiples.clamp(-offset, levels - 1 - offset)
    # Two passes: torch.clamp with tensor bounds takes three times as long (torch 2.13, CPU).
    low = -offset.unsqueeze(-1)
    return torch.minimum(torch.maximum(multiples, low), low + (levels - 1))


def _search_line(groups: Tensor, importance: Tensor, levels: int) -> FloatParams:
    """Real: codes from a range cut at both ends, then the weighted straight line through them."""
    plain = extreme_params(groups, levels, "real")
    span = plain["scale"] * (levels - 1)
    total = importance.sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    mean = (groups * importance).sum(-1) / total
    centred = (groups - mean.unsqueeze(-1)).mul_(importance)
    best = _Best(plain)

    def attempt(scale: Tensor, minimum: Tensor) -> None:
        codes = (groups - minimum.unsqueeze(-1)).div_(scale.unsqueeze(-1)).round_().clamp_(0, levels - 1)
        centre = (codes * importance).sum(-1) / total
        product = (codes * centred).sum(-1)
        power = codes.sub_(centre.unsqueeze(-1)).square_().mul_(importance).sum(-1)
        slope = product / power
        best.offer(product, power, scale=slope, minimum=mean - slope * centre)

    for shrink in shrinks(levels):
        for lean in (0.25, 0.5, 0.75):
            attempt(plain["scale"] * shrink, plain["minimum"] + span * ((1 - shrink) * lean))
    attempt(best.params["scale"], best.params["minimum"])
    return best.params


def _without_zero(scale: Tensor, offset: Tensor, levels: int) -> FloatParams:
    """The same grids, those with the zero point 0 mirrored."""
    flip = offset == 0
    return {"scale": torch.where(flip, -scale, scale), "zero": torch.where(flip, levels - 1.0, offset)}


def shrinks(levels: int) -> Iterator[float]:
    """Parts of the full range to try: the fewer the levels, the more it pays to cut."""
    narrowest = 1 - 1 / levels**0.5
    for trial in range(_TRIALS):
        yield _WIDEST - (_WIDEST - narrowest) * trial / (_TRIALS - 1)
