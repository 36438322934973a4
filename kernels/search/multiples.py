"""Scales of multiples: ŵ = s·t, t from a table, s a real number of either sign, one for every group.

Any s gives codes; for these the best is s = Σhwt / Σht², which takes the error Σh·(w − ŵ)² down by (Σhwt)² / Σht².
Scales are tried so closely that all but a few of the distinct roundings of a group are met, and of the best the codes
and their scale are found in turn until neither moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.kernels.search.regions import Region, above, chosen, inverse, largest

_TINY = 1e-30
_WIDEST = 1.3
_FEW = 16
_ONE_SIDED = (0.7, 6)
"""The narrowest of few levels if one sign is tried, and how many are."""
_TERNARY = 3
_MEANS = (1.5, 2.0, 3.0, 5.0)
"""Scales to try for three levels, in units of the mean |w|."""


@dataclass(frozen=True)
class Multiples:
    """What scales multiply: `nearest` gives the number of the table that is nearest to each of a tensor's.

    `reach` is the table's largest number in absolute value, `levels` how many there are; `ends` are the first and the
    last of a table of whole numbers.
    """

    nearest: Callable[[Tensor], Tensor]
    reach: float
    levels: int
    ends: tuple[int, int] | None = None

    def at(self, x: Tensor) -> Tensor:
        """The table's numbers nearest to `x` [...], which may be overwritten."""
        return self.nearest(x) if self.ends is None else x.round_().clamp_(*self.ends)

    def tried(self, region: Region) -> Iterator[Tensor]:
        """1/s to begin with, [rows, super-blocks, groups]; −1/s is one as well where `both`."""
        low, high = region.groups.amin(0), region.groups.amax(0)
        reached = inverse(torch.maximum(high, -low)) * self.reach
        mirrored = torch.where(high > -low, -1.0, 1.0)  # the table reaches further down than up
        one_sided = self.levels <= _FEW and not self.both(region)
        narrowest, trials = _ONE_SIDED if one_sided else (0.85 - 0.94 / self.levels**0.5, 6 + self.levels // 4)
        for trial in range(trials):
            yield reached.mul(mirrored / (narrowest + (_WIDEST - narrowest) * trial / (trials - 1)))

    def both(self, region: Region) -> bool:
        """Whether scales of either sign are tried: of few levels, one more on a side matters.

        Where all weights count alike it is whole numbers' largest that says which side needs it.
        """
        return self.levels <= _FEW and (self.ends is None or region.importance is not None)


@dataclass(frozen=True)
class RealScales:
    """Scales [..., rows, super-blocks, groups], what they gain, and the power Σht² of their codes."""

    scale: Tensor
    gain: Tensor
    power: Tensor

    @classmethod
    def of(cls, sums: Sequence[tuple[Tensor, Tensor]]) -> RealScales:
        """Of several Σhwt and Σht², group by group the scale that gains most."""
        # All at once: numbers of groups are so few that each operator costs as much as the call of it.
        product, power = (torch.stack(each) for each in zip(*sums, strict=True))
        power.clamp_(min=_TINY)
        scale = product / power
        gain = product.mul_(scale)
        at = largest(gain)
        return cls(*(each.gather(0, at)[0] for each in (scale, gain, power)))

    def or_better(self, other: RealScales) -> RealScales:
        """Group by group the one that gains more."""
        better = above(other.gain, self.gain)
        return RealScales(
            chosen(better, other.scale, self.scale),
            torch.maximum(self.gain, other.gain),
            chosen(better, other.power, self.power),
        )


def real_multiples(region: Region, table: Multiples, turns: int = 2) -> RealScales:
    """Scales with a small Σ importance·(w − ŵ)²; 0 where nothing gains. `turns`: how often codes are found anew."""
    if table.levels == _TERNARY:
        return _ternary(region)
    best = RealScales.of([sums for slope in table.tried(region) for sums in _tried(region, table, slope)])
    for _ in range(turns):
        best = best.or_better(RealScales.of([_sums(region, table.at(region.groups * inverse(best.scale)))]))
    return best


def _ternary(region: Region) -> RealScales:
    """Scales of −1, 0 and 1: only what is beyond half of one counts, and both signs are one.

    Where weights count unequally, what they get where they count alike is tried as well: none is worse than that.
    """
    size, heavy = region.groups.abs(), region.weighted.abs()

    def sums(scale: Tensor) -> tuple[Tensor, Tensor]:
        beyond = torch.gt(size, scale / 2, out=torch.empty_like(size))
        return (heavy * beyond).sum(0), region.summed(beyond)

    mean = heavy.sum(0) / region.total  # where the cut lies is up to all weights, not to the largest
    tried = [mean * part for part in _MEANS]
    if region.importance is not None:
        tried.append(_ternary(replace(region, importance=None)).scale)
    best = RealScales.of([sums(scale) for scale in tried])
    return best.or_better(RealScales.of([sums(best.scale)]))


def _tried(region: Region, table: Multiples, slope: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The sums of the codes that 1/`slope` gives, and where levels are few of those of −1/`slope`."""
    scaled = region.groups * slope
    if not table.both(region):
        yield _sums(region, table.at(scaled))
    elif table.ends is None:
        yield _sums(region, table.nearest(scaled))
        yield _sums(region, table.nearest(scaled.neg_()))
    else:
        # −x is rounded as x is, so that one rounding does for both: the second time the table lies the other way.
        (lowest, highest), whole = table.ends, scaled.round_()
        yield _sums(region, whole.clamp(lowest, highest))
        product, power = _sums(region, whole.clamp_(-highest, -lowest))
        yield product.neg_(), power


def _sums(region: Region, values: Tensor) -> tuple[Tensor, Tensor]:
    """Σhwt and Σht² of `values` t of the table [n, rows, super-blocks, groups], which are overwritten."""
    return (region.weighted * values).sum(0), region.summed(values.square_())
