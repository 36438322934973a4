"""Lines: ŵ = s·q + m, q = 0 … levels − 1, s ≥ 0 and m real numbers, one of each for every group.

Any line gives codes, and for these the best is the weighted straight line through them. Lines are tried that are cut at
both ends, and of the best the codes and their line are found in turn until neither moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.search.regions import Region, above, chosen, inverse, largest

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

    def best(self) -> RealLines:
        """Of lines [tried, rows, super-blocks, groups] group by group the one that gains most."""
        at = largest(self.gain)
        parts = (self.scale, self.minimum, self.gain, self.centre, self.variance)
        return RealLines(*(part.gather(0, at)[0] for part in parts))

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

    @classmethod
    def of(cls, region: Region, levels: int) -> _Cloud:
        mean = region.weighted.sum(0) / region.total
        centred = region.groups - mean
        return cls(region, levels, mean, centred if region.importance is None else centred.mul_(region.importance))

    def fitted(self, tried: Iterable[tuple[Tensor, Tensor]]) -> RealLines:
        """The best of the lines of no minimum above zero for the codes that each 1/slope and minimum give."""
        # All at once: numbers of groups are so few that each operator costs as much as the call of it.
        sums = zip(*(self._sums(*each) for each in tried), strict=True)
        centre, product, variance = (torch.stack(each) for each in sums)
        total = self.region.total
        scale = (product / variance).clamp_(min=0)
        low = self.mean - scale * centre
        gain = scale * product
        # Where the line would begin above zero it goes through zero.
        through = product + self.mean * centre * total
        steeper = through / (variance + centre * centre * total)
        gained = steeper * through - self.mean * self.mean * total
        bound = above(low, torch.zeros_like(low))
        scale, gain = chosen(bound, steeper, scale), chosen(bound, gained, gain)
        return RealLines(scale, low.clamp_(max=0), gain, centre, variance).best()

    def _sums(self, slope: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σhq / Σh, Σh·(w − mean)·(q − that) and Σh·(q − that)² of the codes of a line.

        About their mean: what float32 loses of larger sums is enough that lines which are there are not found again.
        """
        codes = torch.addcmul(-minimum * slope, self.region.groups, slope).round_().clamp_(0, self.levels - 1)
        weighted = codes if self.region.importance is None else codes * self.region.importance
        centre = weighted.sum(0).div_(self.region.total)
        product = codes.sub_(centre).mul(self.centred).sum(0)
        return centre, product, self.region.summed(codes.square_()).clamp_(min=_TINY)


def real_lines(region: Region, levels: int) -> RealLines:
    """Lines with a small Σ importance·(w − ŵ)² that do not begin above zero."""
    cloud = _Cloud.of(region, levels)
    low = region.groups.amin(0).clamp_(max=0)
    span = region.groups.amax(0) - low
    reached = inverse(span) * (levels - 1)
    cuts = ((reached / part, low + span * ((1 - part) * lean)) for part, lean in _cuts(levels))
    best = cloud.fitted([(reached, low), *cuts])
    for _ in range(_TURNS):
        best = best.or_better(cloud.fitted([(inverse(best.scale), best.minimum)]))
    return best


def _cuts(levels: int) -> Iterator[tuple[float, float]]:
    """Parts of the full range to try, and where in it they lie."""
    narrowest = 1 - 1.1 / levels**0.5
    for trial in range(_TRIALS):
        part = narrowest + (_WIDEST - narrowest) * trial / (_TRIALS - 1)
        yield from ((part, lean) for lean in _LEANS)
    # From the smallest weight on, with the last codes not taken: so lie weights that were rounded to lines before.
    yield from ((1 + unused / levels, 0.0) for unused in (1, 2, 3))
