"""Tables of sixteen values, and which of them is nearest.

    nf4        quantiles of N(0, 1) with an exact 0, asymmetric, −1 … 1: QLoRA, arXiv 2305.14314, appendix E
    fp4        sign, 2 bits of exponent, 1 of mantissa, as bitsandbytes has it: ±{0, 1/192, 1/6, … 1}
    quantile   q_i = Φ⁻¹((i + ½)/16), in units of σ
    lloyd_max  the least squared error for N(0, 1), in units of σ: each value is the mean of what lies nearest
               to it (Max 1960, Lloyd 1982)

nf4 and fp4 reach from −1 to 1 and are scaled by a block's largest |w|; the other two by its σ.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from compress.kernels.numbers.steps import Steps, looked_up

Table = Literal["nf4", "fp4", "quantile", "lloyd_max"]

LEVELS = 16
BY_LARGEST = ("nf4", "fp4")

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)  # by the code's lower three bits; the fourth is the sign
_TURNS = 5000
_SETTLED = 1e-12


class Codebook(NamedTuple):
    """`values` [16] fp32 by code; `order` [16] fp32, codes by rising value; `steps` at the middle between those."""

    values: Tensor
    order: Tensor
    steps: Steps

    def nearest(self, x: Tensor) -> Tensor:
        """The codes, fp32, of fp32 `x` in the table's units; a tie goes to the smaller value."""
        return looked_up(self.order, self.steps.below(x))

    def value(self, codes: Tensor) -> Tensor:
        """What fp32 `codes` stand for, in the table's units."""
        return looked_up(self.values, codes)


@cache
def codebook(table: Table, device: torch.device) -> Codebook:
    """The table on `device`. Midpoints are rounded to fp32, as bitsandbytes 0.50 compares with."""
    values = _values(table)
    order = torch.argsort(values, stable=True)
    low, high = values[order[:-1]], values[order[1:]]
    return Codebook(values.to(device), order.float().to(device), Steps(((low + high) / 2).to(device)))


def _values(table: Table) -> Tensor:
    if table == "nf4":
        return torch.tensor(_NF4)
    if table == "fp4":
        positive = torch.tensor(_FP4_TWELFTHS) / 12
        return torch.cat([positive, -positive])
    if table == "quantile":
        return _quantiles().float()
    return _lloyd_max().float()


def _quantiles() -> Tensor:
    quantiles: Tensor = torch.special.ndtri((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS)
    return quantiles


def _lloyd_max() -> Tensor:
    """Lloyd's iteration on the density itself: the mean of N(0, 1) between a and b is (φ(a) − φ(b)) / (Φ(b) − Φ(a))."""
    values = _quantiles()
    ends = torch.tensor([math.inf], dtype=torch.float64)
    for _ in range(_TURNS):
        edges = torch.cat([-ends, (values[1:] + values[:-1]) / 2, ends])
        density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
        means = -density.diff() / torch.special.ndtr(edges).diff()
        moved = float((means - values).abs().max())
        values = means
        if moved < _SETTLED:
            break
    return values
