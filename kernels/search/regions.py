"""Super-blocks: neighbouring groups of a row's weights whose scales are whole numbers beside a float16 or two.

Groups come as [rows, super-blocks, groups, n] fp32, importances as [1, super-blocks, groups, n] fp32 ≥ 0. Searches turn
them to [n, rows, super-blocks, groups]: sums over n then run along whole rows of memory, ten times as fast on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_LEAST = 1e-8
"""Importance of what has none, beside a mean of 1: weights that no input reached are still rounded to what is near."""


@dataclass(frozen=True)
class Region:
    """Weights in units of the largest of their super-block, so that no square leaves the range of float32.

    `groups`, `importance` [n, rows, super-blocks, groups]; `unit` [rows, super-blocks, 1]. No importance is one of 1
    for all: a pass over the weights less wherever it is asked for.
    """

    groups: Tensor
    importance: Tensor | None
    unit: Tensor

    @classmethod
    def of(cls, groups: Tensor, importance: Tensor) -> Region:
        """Of weights as they are, n last; a super-block of zeros has the unit 1."""
        turned = _turned(groups)
        largest = torch.maximum(turned.amax(0), -turned.amin(0)).amax(-1, keepdim=True)
        unit = torch.where(largest > 0, largest, 1.0)
        turned.div_(unit)
        if bool(importance.amin() == importance.amax()):
            return cls(turned, None, unit)
        return cls(turned, _turned(importance).clamp_(min=_LEAST).expand_as(turned).contiguous(), unit)

    @cached_property
    def weighted(self) -> Tensor:
        """importance·w."""
        return self.groups if self.importance is None else self.groups * self.importance

    @cached_property
    def total(self) -> Tensor:
        """Σ importance of every group."""
        if self.importance is None:
            return torch.full_like(self.groups[0], len(self.groups))
        return self.importance.sum(0)

    def summed(self, values: Tensor) -> Tensor:
        """Σ importance·`values` of every group [rows, super-blocks, groups]; `values` may be overwritten."""
        return (values if self.importance is None else values.mul_(self.importance)).sum(0)

    def held(self, real: Tensor) -> Tensor:
        """`real` [rows, super-blocks, 1], in units, as float16 holds it."""
        return (real * self.unit).half().float() / self.unit

    def stored(self, real: Tensor) -> Tensor:
        """float16 [rows, super-blocks]: infinite where that does not reach."""
        return (real * self.unit).half().squeeze(-1)

    def error(self, values: Tensor) -> Tensor:
        """Σ importance·(w − ŵ)² of every group [rows, super-blocks, groups]; `values` ŵ are overwritten."""
        return self.summed(values.sub_(self.groups).square_())


def steps(real: Tensor, unit: Tensor, lowest: int, highest: int) -> Tensor:
    """`real` [rows, super-blocks, groups] as whole numbers of `unit` [rows, super-blocks, 1], 0 where that is 0."""
    return (real / unit).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(lowest, highest)


def over_groups(factors: Tensor, sums: Tensor) -> Tensor:
    """Σ of the products over the groups of a super-block: [rows, super-blocks, 1]."""
    return (factors * sums).sum(-1, keepdim=True)


def nearest_unit(real: Tensor, weight: Tensor, units: Tensor, lowest: int, highest: int) -> Tensor:
    """Of `units` [tried, rows, super-blocks, 1] those whose whole multiples come nearest to `real`: [rows, …].

    By `weight`; `real` and it are [rows, super-blocks, groups].
    """
    cost = over_groups((steps(real, units, lowest, highest) * units).sub_(real).square_(), weight)
    return units.gather(0, largest(cost.neg_()))[0]


def largest(values: Tensor) -> Tensor:
    """Where along the first axis `values` [tried, …] fp32 are largest, the first of equals: [1, …] int64.

    Of what holds NaN it is the last. torch.argmax takes ten times as long (CPU).
    """
    reached = torch.ge(values, values.amax(0), out=torch.empty_like(values))
    back = torch.arange(len(values), 0, -1, dtype=values.dtype, device=values.device)
    found = reached.mul_(back.view(-1, *(1 for _ in values.shape[1:]))).amax(0, keepdim=True)
    return found.neg_().add_(len(values)).clamp_(max=len(values) - 1).long()


def inverse(real: Tensor) -> Tensor:
    """1 / `real`, 0 where that is 0."""
    return real.reciprocal().nan_to_num_(0.0, 0.0, 0.0)


def chosen(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where `better` is 1, `old` where it is 0; fp32, all finite. torch.where takes eight times as long (CPU)."""
    return torch.lerp(old, new, better.expand_as(old))


def above(new: Tensor, old: Tensor) -> Tensor:
    """1 where `new` > `old`, else 0, fp32."""
    return torch.gt(new, old, out=torch.empty_like(new))


def _turned(groups: Tensor) -> Tensor:
    """[…, n] as [n, …], in memory of its own."""
    # As a matrix: torch turns one three times as fast as what has more dimensions.
    flat = groups.reshape(-1, groups.shape[-1])
    return flat.t().clone(memory_format=torch.contiguous_format).view(-1, *groups.shape[:-1])
