"""Scales of multiples: ŵ = s·t, t from a table, s a real number of either sign, one for every group.

Any s gives codes; for these the best is s = Σhwt / Σht², which takes the error Σh·(w − ŵ)² down by (Σhwt)² / Σht².
Scales are tried so closely that all but a few of the distinct roundings of a group are met, and of the best the codes
and their scale are found in turn until neither moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.search.regions import Region, above, chosen, inverse

_TINY = 1e-30
_WIDEST = 1.3
_TURNS = 2
_FEW = 16
"""Levels up to which both signs are tried: one more on a side matters."""
_TERNARY = 3
_MEANS = (1.2, 2.4, 5.0)
"""Scales to try for three levels, in units of the mean |w|."""


@dataclass(frozen=True)
class Multiples:
    """What scales multiply: `nearest` gives the number of the table that is nearest to each of a tensor's.

    `reach` is the table's largest number in absolute value, `levels` how many there are.
    """

    nearest: Callable[[Tensor], Tensor]
    reach: float
    levels: int

    def tried(self, region: Region) -> Iterator[Tensor]:
        """1/s to begin with, [rows, super-blocks, groups]."""
        if self.levels == _TERNARY:
            # Where the cut lies is up to all weights, not to the largest; and both signs are one.
            mean = region.weighted.abs().sum(0) / region.total
            yield from (inverse(mean) / part for part in _MEANS)
            return
        low, high = region.groups.amin(0), region.groups.amax(0)
        reached = inverse(torch.maximum(high, -low)) * self.reach
        mirrored = torch.where(high > -low, -1.0, 1.0)  # the table reaches further down than up
        narrowest = 0.85 - 0.94 / self.levels**0.5
        trials = 6 + self.levels // 4
        for trial in range(trials):
            slope = reached.mul(mirrored / (narrowest + (_WIDEST - narrowest) * trial / (trials - 1)))
            yield slope
            if self.levels <= _FEW:
                yield -slope


@dataclass(frozen=True)
class RealScales:
    """Scales [rows, super-blocks, groups], what they gain, and the power Σht² of their codes."""

    scale: Tensor
    gain: Tensor
    power: Tensor

    def or_better(self, other: RealScales) -> RealScales:
        """Group by group the one that gains more."""
        better = above(other.gain, self.gain)
        return RealScales(
            chosen(better, other.scale, self.scale),
            torch.maximum(self.gain, other.gain),
            chosen(better, other.power, self.power),
        )


def real_multiples(region: Region, table: Multiples) -> RealScales:
    """Scales with a small Σ importance·(w − ŵ)²; 0 where nothing gains."""
    nothing = torch.zeros_like(region.total)
    best = RealScales(nothing, nothing, nothing)
    for slope in table.tried(region):
        best = best.or_better(_fitted(region, table, slope))
    for _ in range(_TURNS):
        best = best.or_better(_fitted(region, table, inverse(best.scale)))
    return best


def _fitted(region: Region, table: Multiples, slope: Tensor) -> RealScales:
    """The best scales for the codes that 1/`slope` gives."""
    values = table.nearest(region.groups * slope)
    product = (region.weighted * values).sum(0)
    power = values.square_().mul_(region.importance).sum(0).clamp_(min=_TINY)
    scale = product / power
    return RealScales(scale, product.mul_(scale), power)
