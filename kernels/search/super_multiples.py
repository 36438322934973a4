"""Super-blocks of multiples: ŵ = d·s·t, t from a table, s = lowest … highest of every group, d a float16.

d and s have either sign. Real scales are searched group by group at first. Then, in turn: the s of every group moves to
the best of its neighbours, each judged by codes that are rounded for it; and d becomes the weighted least-squares fit
to the codes, where that gains. Nothing but the first rounding of the real scales can raise the error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.kernels.search.integers import FloatParams, shrinks
from compress.kernels.search.regions import Region, over_groups, steps

_ROUNDS = 2
_NEIGHBOURS = (-2, -1, 1, 2)


@dataclass(frozen=True)
class Multiples:
    """What scales multiply: `nearest` gives the number of the table that is nearest to each of a tensor's.

    `reach` is the table's largest number in absolute value, `levels` how many there are.
    """

    nearest: Callable[[Tensor], Tensor]
    reach: float
    levels: int


def fit_multiples(groups: Tensor, importance: Tensor, table: Multiples, lowest: int, highest: int) -> FloatParams:
    """Parameters with a small Σ importance·(w − ŵ)², for `groups` and `importance` as in `regions`.

    `d` float16 [rows, super-blocks]; `scale` (s) fp32 [rows, super-blocks, groups].
    """
    region = Region.of(groups, importance)
    scale = real_multiples(region.groups, importance, table)
    largest = scale.gather(-1, scale.abs().argmax(-1, keepdim=True))
    d = region.held(largest / lowest)  # the range reaches further on that side
    found = _Multiples(region, table, lowest, highest, d, steps(scale, d, lowest, highest))
    for _ in range(_ROUNDS):
        found, error = found.moved()
        found = found.refitted(error)
    return {"d": region.stored(found.d), "scale": found.scale}


def real_multiples(groups: Tensor, importance: Tensor, table: Multiples) -> Tensor:
    """Scales [...] of either sign with a small Σ importance·(w − ŵ)² for `groups` [..., n]; 0 where nothing gains.

    For fixed codes the best scale is Σhwt / Σht², and takes the error down by (Σhwt)² / Σht².
    """
    start = groups.abs().amax(-1) / table.reach
    weighted = groups * importance
    best, gain = torch.zeros_like(start), torch.zeros_like(start)

    def attempt(scale: Tensor) -> None:
        nonlocal best, gain
        values = table.nearest(groups / torch.where(scale == 0, 1.0, scale).unsqueeze(-1))
        wanted = (weighted * values).sum(-1)
        power = values.square().mul_(importance).sum(-1)
        better = wanted.square() > gain * power
        gain = torch.where(better, wanted.square() / power, gain)
        best = torch.where(better, wanted / power, best)

    for shrink in shrinks(table.levels):
        attempt(start * shrink)
        attempt(start * -shrink)
    attempt(best)
    return best


@dataclass(frozen=True)
class _Multiples:
    """d [rows, super-blocks, 1] in units of the region; s [rows, super-blocks, groups]."""

    region: Region
    table: Multiples
    lowest: int
    highest: int
    d: Tensor
    scale: Tensor

    def values(self) -> tuple[Tensor, Tensor]:
        """The nearest numbers of the table [rows, super-blocks, groups, n], and the scale of every group."""
        slope = (self.d * self.scale).unsqueeze(-1)
        return self.table.nearest(self.region.groups / torch.where(slope == 0, 1.0, slope)), slope

    def error(self) -> Tensor:
        """The weighted squared error of every group."""
        values, slope = self.values()
        return self.region.error(values.mul_(slope))

    def moved(self) -> tuple[_Multiples, Tensor]:
        """The best of s − 2 … s + 2 of every group, and its error."""
        best, least = self, self.error()
        for step in _NEIGHBOURS:
            scale = (self.scale + step).clamp_(self.lowest, self.highest)
            error = replace(self, scale=scale).error()
            better = error < least
            best = replace(best, scale=torch.where(better, scale, best.scale))
            least = torch.where(better, error, least)
        return best, least

    def refitted(self, error: Tensor) -> _Multiples:
        """With d fitted to the codes, in the super-blocks whose `error` that takes down."""
        values = self.values()[0]
        weight, importance = self.region.groups, self.region.importance
        product = over_groups(self.scale, (values * weight).mul_(importance).sum(-1))
        power = over_groups(self.scale * self.scale, values.square_().mul_(importance).sum(-1))
        d = self.region.held(torch.where(power > 0, product / power, self.d))
        gained = replace(self, d=d).error().sum(-1, keepdim=True) < error.sum(-1, keepdim=True)
        return replace(self, d=torch.where(gained, d, self.d))
