"""The numbers that a scale multiplies: whole ones around zero, or a table; and the code of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from compress.kernels.numbers.steps import looked_up
from compress.kernels.search.multiples import Multiples

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the 4-bit codes of GGML's IQ4_NL and IQ4_XS stand for: finer around zero (`ggml-common.h`)."""


@dataclass(frozen=True, eq=False)
class Units:
    """`codes` of the nearest numbers to any fp32 tensor, and `values` of codes; codes are whole fp32, 0 … levels − 1.

    `nearest` are those numbers; `ends` the first and the last where they are all between. None overwrites its
    argument, and no number is NaN.
    """

    codes: Callable[[Tensor], Tensor]
    values: Callable[[Tensor], Tensor]
    nearest: Callable[[Tensor], Tensor]
    levels: int
    reach: float
    ends: tuple[int, int] | None = None

    @property
    def multiples(self) -> Multiples:
        """These numbers as a search wants them."""
        return Multiples(self.nearest, self.reach, self.levels, self.ends)


@cache
def whole(lowest: int, highest: int) -> Units:
    """lowest … highest."""
    return Units(
        lambda x: x.round().clamp_(lowest, highest).sub_(lowest),
        lambda codes: codes + lowest,
        lambda x: x.round().clamp_(lowest, highest),
        highest - lowest + 1,
        float(max(-lowest, highest)),
        (lowest, highest),
    )


@cache
def table(values: tuple[int, ...]) -> Units:
    """Rising whole numbers; a tie goes to the smaller."""
    numbers = torch.tensor(values, dtype=torch.float32)
    first, last = 2 * values[0], 2 * values[-1]
    # Borders lie on whole numbers or halves: rounded up to the next of these, a number still has the same nearest.
    ends = torch.arange(first, last + 1) / 2
    nearest = torch.bucketize(ends, (numbers[1:] + numbers[:-1]) / 2).float()

    def at(x: Tensor) -> Tensor:
        return (x * 2).ceil_().clamp_(first, last).sub_(first)

    return Units(
        lambda x: looked_up(nearest.to(x.device), at(x)),
        lambda codes: looked_up(numbers.to(codes.device), codes),
        lambda x: looked_up(numbers[nearest.int()].to(x.device), at(x)),
        len(values),
        float(max(-values[0], values[-1])),
    )
