"""Super-blocks: neighbouring groups of a row's weights whose scales are whole numbers beside a float16 or two.

Groups are [rows, super-blocks, groups, n] fp32, importances [1, super-blocks, groups, n] fp32 ≥ 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """Weights in units of the largest of their super-block, so that no square leaves the range of float32.

    `unit` [rows, super-blocks, 1].
    """

    groups: Tensor
    importance: Tensor
    unit: Tensor

    @classmethod
    def of(cls, groups: Tensor, importance: Tensor) -> Region:
        """Of weights as they are; a super-block of zeros has the unit 1."""
        largest = groups.abs().amax((-1, -2)).unsqueeze(-1)
        unit = torch.where(largest > 0, largest, 1.0)
        return cls(groups / unit.unsqueeze(-1), importance, unit)

    def held(self, real: Tensor) -> Tensor:
        """`real` [rows, super-blocks, 1], in units, as float16 holds it."""
        return (real * self.unit).half().float() / self.unit

    def stored(self, real: Tensor) -> Tensor:
        """float16 [rows, super-blocks]: infinite where that does not reach."""
        return (real * self.unit).half().squeeze(-1)

    def error(self, values: Tensor) -> Tensor:
        """Σ importance·(w − ŵ)² of every group [rows, super-blocks, groups]; `values` ŵ are overwritten."""
        return values.sub_(self.groups).square_().mul_(self.importance).sum(-1)


def steps(real: Tensor, unit: Tensor, lowest: int, highest: int) -> Tensor:
    """`real` [rows, super-blocks, groups] as whole numbers of `unit` [rows, super-blocks, 1], 0 where that is 0."""
    return (real / unit).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(lowest, highest)


def over_groups(factors: Tensor, sums: Tensor) -> Tensor:
    """Σ of the products over the groups of a super-block: [rows, super-blocks, 1]."""
    return (factors * sums).sum(-1, keepdim=True)
