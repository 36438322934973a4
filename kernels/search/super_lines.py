"""Super-blocks of lines: ŵ = d·s·q − e·m, q = 0 … levels − 1, s and m = 0 … most of every group, d and e float16 ≥ 0.

Real lines are searched group by group at first. Then d is the one that leaves their scales the least cost of becoming
whole, and e the one that does so for where they begin, once scales are whole. d and e become the weighted
least-squares fit to the codes, where that gains as float16 holds it; s and m of every group move to the best of their
neighbours, each judged by codes that are rounded for it; and d and e are fitted once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.kernels.search.integers import FloatParams
from compress.kernels.search.lines import RealLines, real_lines
from compress.kernels.search.regions import Region, above, chosen, inverse, nearest_unit, over_groups, steps

_Pair = tuple[Tensor, Tensor]

_SINGULAR = 1e-6
_NEAR = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


def fit_lines(groups: Tensor, importance: Tensor, levels: int, most: int) -> FloatParams:
    """Parameters with a small Σ importance·(w − ŵ)², for `groups` and `importance` as in `regions`.

    `d` and `dmin` (e) float16 [rows, super-blocks]; `scale` (s) and `minimum` (m) fp32 [rows, super-blocks, groups].
    """
    region = Region.of(groups, importance)
    found = _Lines(region, levels, most, *_whole(region, real_lines(region, levels), most))
    found = found.refitted().moved(_NEAR).refitted()
    return {
        "d": region.stored(found.d),
        "dmin": region.stored(found.e),
        "scale": found.scale,
        "minimum": found.minimum,
    }


def _whole(region: Region, real: RealLines, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d, e, s and m near `real`: an error Δs of a scale and Δm of a beginning cost V·Δs² + H·(Δm + q̄·Δs)²."""
    d = _common(region, real.scale, real.variance, most)
    scale = steps(real.scale, d, 0, most)
    depth = (scale * d).sub_(real.scale).mul_(real.centre).sub_(real.minimum).clamp_(min=0)
    e = _common(region, depth, region.total, most)
    return d, e, scale, steps(depth, e, 0, most)


def _common(region: Region, real: Tensor, weight: Tensor, most: int) -> Tensor:
    """The float16 [rows, super-blocks, 1] whose whole multiples 0 … `most` come nearest to `real`, by `weight`.

    Of those that make the largest a whole number near the end of the range.
    """
    largest = real.amax(-1, keepdim=True)
    step = 1 if most > 15 else 0.5
    near = torch.arange(-1, int(most / 4 / step), device=largest.device).mul(-step).add_(most)
    return nearest_unit(real, weight, region.held(largest / near.view(-1, 1, 1, 1)), 0, most)


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
        """The nearest codes [n, rows, super-blocks, groups]; slope and depth of every group's line."""
        slope, depth = self.d * self.scale, self.e * self.minimum
        codes = (self.region.groups + depth).mul_(inverse(slope)).round_().clamp_(0, self.levels - 1)
        return codes, slope, depth

    def error(self) -> Tensor:
        """The weighted squared error of every group."""
        codes, slope, depth = self.codes()
        return self.region.error(codes.mul_(slope).sub_(depth))

    def moved(self, by: Iterable[tuple[int, int]]) -> _Lines:
        """With the best of (s, m) and (s, m) + `by` for every group."""
        scale, minimum, least = self.scale, self.minimum, self.error()
        for up, down in by:
            tried = replace(
                self, scale=(self.scale + up).clamp_(0, self.most), minimum=(self.minimum + down).clamp_(0, self.most)
            )
            error = tried.error()
            better = above(least, error)
            scale, minimum = chosen(better, tried.scale, scale), chosen(better, tried.minimum, minimum)
            least = least.minimum(error)
        return replace(self, scale=scale, minimum=minimum)

    def refitted(self) -> _Lines:
        """With d and e fitted to the codes, in the super-blocks whose error that takes down."""
        best, squares = self._solved()
        d, e = (self.region.held(real) for real in best)
        gained = above(_excess(self.d, self.e, best, squares), _excess(d, e, best, squares))
        return replace(self, d=chosen(gained, d, self.d), e=chosen(gained, e, self.e))

    def _solved(self) -> tuple[_Pair, tuple[Tensor, Tensor, Tensor]]:
        """d > 0 and e ≥ 0 of the least Σ h·(w − d·x + e·y)², x = s·q and y = m; d beside the e there is, if need be.

        And Σhxx, Σhxy and Σhyy.
        """
        region, s, m = self.region, self.scale, self.minimum
        codes = self.codes()[0]
        wx = over_groups(s, (codes * region.weighted).sum(0))
        wy = over_groups(m, region.weighted.sum(0))
        heavy = codes if region.importance is None else codes * region.importance
        xy = over_groups(s * m, heavy.sum(0))
        xx, yy = over_groups(s * s, codes.mul_(heavy).sum(0)), over_groups(m * m, region.total)
        determinant = xx * yy - xy * xy
        d, e = (wx * yy - wy * xy) / determinant, (wx * xy - wy * xx) / determinant
        free = (determinant > _SINGULAR * xx * yy) & (d > 0) & (e >= 0)
        alone = (wx + self.e * xy) * inverse(xx)
        d = torch.where(free, d, torch.where(alone > 0, alone, self.d))
        return (d, torch.where(free, e, self.e)), (xx, xy, yy)


def _excess(d: Tensor, e: Tensor, best: _Pair, squares: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """How much more d and e err than the `best` pair, codes as they are."""
    (off, away), (xx, xy, yy) = (d - best[0], e - best[1]), squares
    return xx * off * off - 2 * xy * off * away + yy * away * away
