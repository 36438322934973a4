"""What codes stand for, in one form for all number formats: a table of levels, a scale and a minimum per group.

    ŵ = scale · level[q] + minimum

That is how `NumberFormat` promises its values to be (kernels/qtensor.py). Where levels lie evenly, the product with
inputs x needs the codes only as they are: Σ_g scale·Σ q·x + minimum·Σ x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.qtensor import Params, QTensor


@dataclass(frozen=True)
class Levels:
    """`table` [levels] fp32; `scale` and `minimum` [rows, groups] fp32, groups of equally many neighbouring columns."""

    table: Tensor
    scale: Tensor
    minimum: Tensor

    @property
    def even(self) -> bool:
        """Whether level q is q: `levels_of` gives evenly spaced ones so."""
        return torch.equal(self.table, _counted(self.table))


def levels_of(weight: QTensor) -> Levels | None:
    """What the codes of `weight` stand for; None if codes span columns, or groups are not of equally many columns."""
    number_format = weight.format
    grouped = _by_rows(weight)
    if number_format.span > 1 or grouped is None:
        return None
    scale = grouped["scale"]
    unit = {"scale": torch.ones(1), "minimum": torch.zeros(1), "zero": torch.zeros(1)}
    codes = torch.arange(number_format.levels, dtype=torch.float32)
    table = number_format.value(codes, unit).to(scale.device)
    if not bool(table.isfinite().all()):
        table = table.nan_to_num(0.0)  # bit patterns that no weight is rounded to
    # What value gives beyond scale · level is the same for every code: a zero point, or a minimum.
    minimum = number_format.value(torch.zeros_like(scale), grouped) - scale * table[0]
    step = table[1] - table[0]
    if torch.equal(table, table[0] + step * _counted(table)):
        return Levels(_counted(table), scale * step, minimum + scale * table[0])
    return Levels(table, scale, minimum)


def _by_rows(weight: QTensor) -> Params | None:
    """Parameters [rows, groups]; those that rows have in common, as scales of FP8 may be, once for each."""
    number_format, (rows, columns) = weight.format, weight.shape
    grouped = number_format.grouped(weight.params, number_format.reals(weight.params))
    scale = grouped["scale"]
    if scale.ndim != 2 or columns % scale.shape[1]:
        return None
    if len(scale) == rows:
        return grouped
    spread = number_format.expand(weight.params, weight.shape)
    groups = {name: value.unflatten(1, (scale.shape[1], -1)) for name, value in spread.items()}
    alike = all(bool((value == value[..., :1]).all()) for value in groups.values())
    return {name: value[..., 0] for name, value in groups.items()} if alike else None


def _counted(table: Tensor) -> Tensor:
    return torch.arange(len(table), dtype=torch.float32, device=table.device)
