"""Lines: ŵ = s·q + m, q = 0 … levels − 1, s ≥ 0 and m real numbers, one of each for every group.

Any line gives codes, and for these the best is the weighted straight line through them. Lines are tried that are cut at
both ends, and of the best the codes and their line are found in turn until neither moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.search.regions import Region, above, chosen, inverse

_TINY = 1e-30
_WIDEST = 1.04
_TRIALS = 5
_LEANS = (0.2, 0.5, 0.8)
_TURNS = 2


@dataclass(frozen=True)
class RealLines:
    """Lines [rows, super-blocks, groups], what they gain, and Σhq / Σh and Σh·(q − that)² of their codes."""

    scale: Tensor
    minimum: Tensor
    gain: Tensor
    centre: Tensor
    variance: Tensor

    def or_better(self, other: RealLines) -> RealLines:
        """Group by group the one that gains more."""
        better = above(other.gain, self.gain)
        return RealLines(
            chosen(better, other.scale, self.scale),
            chosen(better, other.minimum, self.minimum),
            torch.maximum(self.gain, other.gain),
            chosen(better, other.centre, self.centre),
            chosen(better, other.variance, self.variance),
        )


@dataclass(frozen=True)
class _Cloud:
    """Weights about their weighted mean: `centred` is importance·(w − mean)."""

    region: Region
    levels: int
    mean: Tensor
    centred: Tensor

    def fitted(self, slope: Tensor, minimum: Tensor) -> RealLines:
        """The best lines of no minimum above zero for the codes that 1/`slope` and `minimum` give."""
        total = self.region.total
        codes = torch.addcmul(-minimum * slope, self.region.groups, slope).round_().clamp_(0, self.levels - 1)
        centre = (codes * self.region.importance).sum(0) / total
        product = codes.sub_(centre).mul(self.centred).sum(0)
        variance = codes.square_().mul_(self.region.importance).sum(0).clamp_(min=_TINY)
        scale = (product / variance).clamp_(min=0)
        low = self.mean - scale * centre
        free = RealLines(scale, low, scale * product, centre, variance)
        # Where the line would begin above zero it goes through zero.
        through = product + self.mean * centre * total
        scale = through / (variance + centre * centre * total)
        gain = scale * through - self.mean * self.mean * total
        bound = above(low, torch.zeros_like(low))
        return RealLines(
            chosen(bound, scale, free.scale), low.clamp(max=0), chosen(bound, gain, free.gain), centre, variance
        )


def real_lines(region: Region, levels: int) -> RealLines:
    """Lines with a small Σ importance·(w − ŵ)² that do not begin above zero."""
    mean = region.weighted.sum(0) / region.total
    cloud = _Cloud(region, levels, mean, (region.groups - mean).mul_(region.importance))
    low = region.groups.amin(0).clamp_(max=0)
    span = region.groups.amax(0) - low
    reached = inverse(span) * (levels - 1)
    best = cloud.fitted(reached, low)
    for part, lean in _cuts(levels):
        best = best.or_better(cloud.fitted(reached / part, low + span * ((1 - part) * lean)))
    for _ in range(_TURNS):
        best = best.or_better(cloud.fitted(inverse(best.scale), best.minimum))
    return best


def _cuts(levels: int) -> Iterator[tuple[float, float]]:
    """Parts of the full range to try, and where in it they lie."""
    narrowest = 1 - 1.1 / levels**0.5
    for trial in range(_TRIALS):
        part = narrowest + (_WIDEST - narrowest) * trial / (_TRIALS - 1)
        yield from ((part, lean) for lean in _LEANS)
    # From the smallest weight on, with the last codes not taken: so lie weights that were rounded to lines before.
    yield from ((1 + unused / levels, 0.0) for unused in (1, 2, 3))
