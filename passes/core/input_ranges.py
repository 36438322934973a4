"""Statistics of a layer's inputs that choose the range of a static grid.

Each is a `Statistic` and an answer: the largest |x| that the grid should reach. Values beyond it saturate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.kernels.activations import Grid, grid_scale, round_to_grid
from compress.passes.core.stats import Statistic

_SHIFT = 15
_BINS = 1 << (31 - _SHIFT)
_TRIALS = 64


class Extremes(Statistic):
    """The largest |x|."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.largest = torch.zeros((), device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        self.largest = torch.maximum(self.largest, x.abs().amax())


class Moments(Statistic):
    """Σx and Σx² of every column [in] fp64."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.total = torch.zeros(in_features, dtype=torch.float64, device=device)
        self.energy = torch.zeros(in_features, dtype=torch.float64, device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        self.total += x.sum(0, dtype=torch.float64)
        self.energy += x.square().sum(0, dtype=torch.float64)

    def reach(self, sigmas: float) -> Tensor:
        """The farther of μ − kσ and μ + kσ, over all columns together: [] fp32."""
        count = self.tokens * len(self.total)
        mean = self.total.sum() / count
        deviation = (self.energy.sum() / count - mean.square()).clamp(min=0).sqrt()
        return (mean.abs() + sigmas * deviation).float()


class Histogram(Statistic):
    """How often |x| falls into each of 65536 bins, whose edges are floats with 8 bits of mantissa.

    So a bin is 0.4 % wide wherever it lies, no range need be known beforehand, and the order of the data does
    not matter.
    """

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.counts = torch.zeros(_BINS, dtype=torch.int64, device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        bins = x.abs().contiguous().view(torch.int32).flatten() >> _SHIFT
        self.counts += torch.bincount(bins, minlength=_BINS)

    def percentile(self, percent: float) -> Tensor:
        """The upper edge [] fp32 of the bin up to which `percent` % of all |x| lie."""
        passed = self.counts.cumsum(0)
        wanted = passed[-1].double() * (percent / 100)
        return _edges(torch.searchsorted(passed.double(), wanted).clamp(max=_BINS - 2) + 1)

    def least_error(self, grid: Grid) -> Tensor:
        """Of 64 parts of the largest |x|, the range [] fp32 at which rounding to `grid` loses the least Σ(x − x̂)²."""
        bins = self.counts.nonzero().flatten()
        counts, values = self.counts[bins].double(), (_edges(bins) + _edges(bins + 1)) / 2
        ranges = values.amax() * torch.linspace(1 / _TRIALS, 1, _TRIALS, device=values.device)
        errors = [
            (round_to_grid(values, grid_scale(reach, grid), grid) - values).double().square() @ counts
            for reach in ranges
        ]
        return ranges[int(torch.stack(errors).argmin())]


def _edges(bins: Tensor) -> Tensor:
    """The lower edges, fp32."""
    return (bins.to(torch.int32) << _SHIFT).view(torch.float32)
