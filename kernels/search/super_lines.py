"""Super-blocks of lines: ŵ = d·s·q − e·m, q = 0 … levels − 1, s and m = 0 … most of every group, d and e float16 ≥ 0.

Real scales and minima are searched group by group at first. Then, in turn: s and m of every group move to the best of
their neighbours, each judged by codes that are rounded for it; and d and e become the weighted least-squares fit to
the codes, where that gains. Nothing but the first rounding of the real numbers can raise the error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from compress.kernels.search.integers import FloatParams, searched_params
from compress.kernels.search.regions import Region, over_groups, steps

_ROUNDS = 2
_SINGULAR = 1e-6


def fit_lines(groups: Tensor, importance: Tensor, levels: int, most: int) -> FloatParams:
    """Parameters with a small Σ importance·(w − ŵ)², for `groups` and `importance` as in `regions`.

    `d` and `dmin` (e) float16 [rows, super-blocks]; `scale` (s) and `minimum` (m) fp32 [rows, super-blocks, groups].
    """
    region = Region.of(groups, importance)
    scale, minimum = _real_lines(region, levels)
    d, e = (region.held(real.amax(-1, keepdim=True) / most) for real in (scale, minimum))
    found = _Lines(region, levels, most, d, e, steps(scale, d, 0, most), steps(minimum, e, 0, most))
    for _ in range(_ROUNDS):
        found, error = found.moved()
        found = found.refitted(error)
    return {
        "d": region.stored(found.d),
        "dmin": region.stored(found.e),
        "scale": found.scale,
        "minimum": found.minimum,
    }


def _real_lines(region: Region, levels: int) -> tuple[Tensor, Tensor]:
    """Real scales ≥ 0 of every group, and how far below zero it begins, ≥ 0."""
    high, low = region.groups.amax(-1), region.groups.amin(-1)
    line = searched_params(region.groups, region.importance, levels, "real")
    # No line begins above zero: a group that should gets one from zero to its largest weight.
    above = line["minimum"] > 0
    scale = torch.where(above, high / (levels - 1), line["scale"])
    return scale.masked_fill_((high == low) & ~above, 0.0), (-line["minimum"]).clamp_(min=0)


@dataclass(frozen=True)
class _Lines:
    """d and e [rows, super-blocks, 1] in units of the region; s and m [rows, super-blocks, groups]."""

    region: Region
    levels: int
    most: int
    d: Tensor
    e: Tensor
    scale: Tensor
    minimum: Tensor

    def codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest codes [rows, super-blocks, groups, n]; slope and depth of every group's line."""
        slope, depth = (self.d * self.scale).unsqueeze(-1), (self.e * self.minimum).unsqueeze(-1)
        codes = (self.region.groups + depth).div_(slope).nan_to_num_(0.0).round_().clamp_(0, self.levels - 1)
        return codes, slope, depth

    def error(self) -> Tensor:
        """The weighted squared error of every group."""
        codes, slope, depth = self.codes()
        return self.region.error(codes.mul_(slope).sub_(depth))

    def moved(self) -> tuple[_Lines, Tensor]:
        """The best of the nine (s ± 1, m ± 1) of every group, and its error."""
        best, least = self, self.error()
        for up, down in product((-1, 0, 1), repeat=2):
            if up == down == 0:
                continue
            scale, minimum = (self.scale + up).clamp_(0, self.most), (self.minimum + down).clamp_(0, self.most)
            error = replace(self, scale=scale, minimum=minimum).error()
            better = error < least
            best = replace(
                best,
                scale=torch.where(better, scale, best.scale),
                minimum=torch.where(better, minimum, best.minimum),
            )
            least = torch.where(better, error, least)
        return best, least

    def refitted(self, error: Tensor) -> _Lines:
        """With d and e fitted to the codes, in the super-blocks whose `error` that takes down."""
        d, e = (self.region.held(real) for real in self._solved())
        gained = replace(self, d=d, e=e).error().sum(-1, keepdim=True) < error.sum(-1, keepdim=True)
        return replace(self, d=torch.where(gained, d, self.d), e=torch.where(gained, e, self.e))

    def _solved(self) -> tuple[Tensor, Tensor]:
        """d > 0 and e ≥ 0 of the least Σ h·(w − d·x + e·y)², x = s·q and y = m; d beside the e there is, if need be."""
        weight, importance, s, m = self.region.groups, self.region.importance, self.scale, self.minimum
        codes = self.codes()[0]
        heavy = codes * importance
        xx, xy = over_groups(s * s, (heavy * codes).sum(-1)), over_groups(s * m, heavy.sum(-1))
        yy, wx = over_groups(m * m, importance.sum(-1)), over_groups(s, heavy.mul_(weight).sum(-1))
        wy = over_groups(m, (weight * importance).sum(-1))
        determinant = xx * yy - xy * xy
        d, e = (wx * yy - wy * xy) / determinant, (wx * xy - wy * xx) / determinant
        free = (determinant > _SINGULAR * xx * yy) & (d > 0) & (e >= 0)
        alone = (wx + self.e * xy) / xx
        d = torch.where(free, d, torch.where(alone > 0, alone, self.d))
        return d, torch.where(free, e, self.e)
