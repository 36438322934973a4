"""Super-blocks of multiples: ŵ = d·s·t, t from a table, s = lowest … highest of every group, d a float16.

d and s have either sign. Real scales are searched group by group at first. Then d is the one that leaves them the
least cost of becoming whole, and then the weighted least-squares fit to the codes; the s of every group moves to the
best of its neighbours, each judged by codes that are rounded for it; and d is fitted once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.kernels.search.integers import FloatParams
from compress.kernels.search.multiples import Multiples, RealScales, real_multiples
from compress.kernels.search.regions import Region, above, chosen, inverse, nearest_unit, over_groups, steps

_NEAR = (-2, -1, 1, 2)


def fit_multiples(groups: Tensor, importance: Tensor, table: Multiples, lowest: int, highest: int) -> FloatParams:
    """Parameters with a small Σ importance·(w − ŵ)², for `groups` and `importance` as in `regions`.

    `d` float16 [rows, super-blocks]; `scale` (s) fp32 [rows, super-blocks, groups].
    """
    region = Region.of(groups, importance)
    real = real_multiples(region, table, turns=1)
    d = _common(region, real, lowest, highest)
    found = _Multiples(region, table, lowest, highest, d, steps(real.scale, d, lowest, highest))
    found = found.refitted().moved(_NEAR).refitted()
    return {"d": region.stored(found.d), "scale": found.scale}


def _common(region: Region, real: RealScales, lowest: int, highest: int) -> Tensor:
    """The d [rows, super-blocks, 1] whose whole multiples come nearest to the real scales, by the power of each.

    Of those that make the largest scale a whole number near the end of the range, on either side.
    """
    largest = real.scale.gather(-1, real.scale.abs().argmax(-1, keepdim=True))
    whole = torch.tensor([*range(lowest, lowest * 7 // 8), *range(highest, highest - 4, -1)], device=largest.device)
    return nearest_unit(real.scale, real.power, region.held(largest / whole.view(-1, 1, 1, 1)), lowest, highest)


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
        """The nearest numbers of the table [n, rows, super-blocks, groups], and the scale of every group."""
        slope = self.d * self.scale
        return self.table.at(self.region.groups * inverse(slope)), slope

    def error(self) -> Tensor:
        """The weighted squared error of every group."""
        values, slope = self.values()
        return self.region.error(values.mul_(slope))

    def moved(self, by: Iterable[int]) -> _Multiples:
        """With the best of s and s + `by` for every group."""
        best, least = self.scale, self.error()
        for step in by:
            scale = (self.scale + step).clamp_(self.lowest, self.highest)
            error = replace(self, scale=scale).error()
            best = chosen(above(least, error), scale, best)
            least = least.minimum(error)
        return replace(self, scale=best)

    def refitted(self) -> _Multiples:
        """With d fitted to the codes: of all that a float16 holds none is nearer to the best."""
        values, _ = self.values()
        product = over_groups(self.scale, (values * self.region.weighted).sum(0))
        power = over_groups(self.scale * self.scale, self.region.summed(values.square_()))
        d = self.region.held(product / power)
        return replace(self, d=torch.where((power > 0) & d.isfinite(), d, self.d))
