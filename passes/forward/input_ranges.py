"""Statistics of a layer's inputs that choose the range of a static grid.

Each is a `Statistic` and an answer: the largest |x| that the grid should reach. Values beyond it saturate.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from compress.kernels.numbers.activations import Grid, grid_scale, round_to_grid
from compress.passes.forward.statistics import Statistic

_TRIALS = 64
_FINE, _FINE_BINS = 15, 1 << 16
_COARSE, _COARSE_BINS = 18, 1 << 10
_LOWEST = (127 - 16) << (23 - _COARSE)


class Extremes(Statistic):
    """The largest |x| of every column: `columns` [in] fp32."""

    says = "the largest of every input"

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.columns = torch.zeros(in_features, device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        self.columns = torch.maximum(self.columns, x.abs().amax(0))

    def merge(self, other: Self) -> None:
        self.columns = torch.maximum(self.columns, other.columns)

    def divide(self, scale: Tensor) -> None:
        self.columns.div_(scale)


class Moments(Statistic):
    """Σx and Σx² of every column: `total`, `energy` [in] fp64."""

    says = "the mean of every input"

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.total = torch.zeros(in_features, dtype=torch.float64, device=device)
        self.energy = torch.zeros(in_features, dtype=torch.float64, device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        self.total += x.sum(0, dtype=torch.float64)
        self.energy += x.square().sum(0, dtype=torch.float64)

    def merge(self, other: Self) -> None:
        self.total += other.total
        self.energy += other.energy

    def divide(self, scale: Tensor) -> None:
        self.total.div_(scale)
        self.energy.div_(scale.double().square())

    def reach(self, sigmas: float) -> Tensor:
        """The farther of μ − kσ and μ + kσ, over all columns together: [] fp32."""
        count = self.tokens * len(self.total)
        mean = self.total.sum() / count
        deviation = (self.energy.sum() / count - mean.square()).clamp(min=0).sqrt()
        return (mean.abs() + sigmas * deviation).float()


class Histogram(Statistic):
    """How often |x| falls into each of 1024 bins of every column: `counts` [in, 1024] int32.

    Edges are floats of 5 bits of mantissa, from 2^−16 to 2^16: so a bin is 3 % wide wherever it lies, no range
    need be known beforehand, and the order of the data does not matter. What lies beyond goes to the outer bins.
    """

    says = "how often every size of input comes"

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.counts = torch.zeros(in_features, _COARSE_BINS, dtype=torch.int32, device=device)
        self._scale = torch.ones(in_features, device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        bins = (_bits(x.abs()) >> _COARSE).sub_(_LOWEST).clamp_(0, _COARSE_BINS - 1)
        columns = torch.arange(len(self.counts), dtype=torch.int32, device=x.device) * _COARSE_BINS
        self.counts += torch.bincount((bins + columns).flatten(), minlength=self.counts.numel()).view_as(self.counts)

    def merge(self, other: Self) -> None:
        self.counts += other.counts

    def divide(self, scale: Tensor) -> None:
        self._scale.mul_(scale)

    def percentile(self, percent: float) -> Tensor:
        """The value [] fp32 up to which `percent` % of all |x| lie, to 2 %."""
        values, counts = self._pooled()
        passed = counts.cumsum(0)
        return values[int(torch.searchsorted(passed, passed[-1] * (percent / 100)).clamp(max=len(values) - 1))]

    def least_error(self, grid: Grid) -> Tensor:
        """Of 64 parts of the largest |x|, the range [] fp32 at which rounding to `grid` loses the least Σ(x − x̂)²."""
        values, counts = self._pooled()
        ranges = values[-1] * torch.linspace(1 / _TRIALS, 1, _TRIALS, device=values.device)
        errors = [
            (round_to_grid(values, grid_scale(reach, grid), grid) - values).double().square() @ counts
            for reach in ranges
        ]
        return ranges[int(torch.stack(errors).argmin())]

    def _pooled(self) -> tuple[Tensor, Tensor]:
        """All columns together: values [n] fp32, ascending, and how often each comes [n] fp64."""
        columns, bins = self.counts.nonzero(as_tuple=True)
        if not len(bins):  # an expert that no token was routed to
            return torch.zeros(1, device=bins.device), torch.ones(1, dtype=torch.float64, device=bins.device)
        middles = _floats(((bins + _LOWEST) << _COARSE) + (1 << (_COARSE - 1))) / self._scale[columns]
        fine = torch.bincount(_bits(middles) >> _FINE, self.counts[columns, bins].double(), _FINE_BINS)
        filled = fine.nonzero().flatten()
        return _floats((filled << _FINE) + (1 << (_FINE - 1))), fine[filled]


def _bits(x: Tensor) -> Tensor:
    """The bit patterns of fp32 numbers, int32: for positive ones they ascend with the numbers."""
    return x.contiguous().view(torch.int32)


def _floats(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)
