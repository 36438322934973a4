"""What a computation takes, counted from shapes: in units that a machine can be asked its pace of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Products of matrices, other operators on large tensors, and operators on small ones, one after another.

    `flops` are floating-point operations of the first, `elements` the fp32 numbers that the second write. `calls`
    count the third, as column loops make them: on a thousand elements or less, on one thread. What goes on one thread
    for other reasons counts as that, too, a thousand elements at a time. `half` are operations of products of bf16,
    `rounded` those of fp32 products that are rounded to it where that is faster (kernels/half.py).
    """

    flops: float = 0.0
    elements: float = 0.0
    calls: float = 0.0
    half: float = 0.0
    rounded: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            self.flops + other.flops,
            self.elements + other.elements,
            self.calls + other.calls,
            self.half + other.half,
            self.rounded + other.rounded,
        )

    def __mul__(self, times: float) -> Effort:
        return Effort(
            self.flops * times, self.elements * times, self.calls * times, self.half * times, self.rounded * times
        )
