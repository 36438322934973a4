"""How fast this machine computes: probed in some hundredths of a second, for a plan to say how long a run takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from compress.kernels.effort import Effort
from compress.kernels.half import half_pays, half_products
from compress.kernels.threads import single_thread

_TRIES = 12
_SUSTAINED = 0.7
"""What is left of the best over a whole run: other shapes, caches that are full. Measured on SmolLM2, two cores."""
_SIDE, _LARGE, _SMALL = 512, 1 << 22, 1 << 10


@dataclass(frozen=True)
class Pace:
    """What is done in a second of each sort that `Effort` counts; how many `rounded` products, if it is asked."""

    flops: float
    elements: float
    calls: float
    half: float
    rounded: Callable[[], float]

    def seconds(self, effort: Effort) -> float:
        """How long that takes."""
        rounded = effort.rounded / self.rounded() if effort.rounded else 0.0
        plain = effort.flops / self.flops + effort.elements / self.elements
        return plain + effort.calls / self.calls + effort.half / self.half + rounded


@cache
def pace() -> Pace:
    """The pace of this machine on the CPU, when this process first asked."""
    side, large, small = torch.ones(_SIDE, _SIDE), torch.ones(_LARGE), torch.ones(_SMALL)
    halves = side.bfloat16()
    products = _rate(lambda: torch.mm(side, side), 2)
    half = _rate(lambda: torch.mm(halves, halves), 1)
    whole = _rate(lambda: large.mul_(large), 1)
    with single_thread():
        calls = _rate(lambda: small.mul_(small), 200)
    each = 2 * _SIDE**3
    return Pace(each * products, _LARGE * whole, calls, each * half, _rounded)


@cache
def _rounded() -> float:
    """Operations a second of products of fp32 that are rounded to bfloat16 where that pays."""
    side = torch.ones(_SIDE, _SIDE)
    with half_products(wanted=half_pays()):
        return 2 * _SIDE**3 * _rate(lambda: torch.mm(side, side), 1)


def _rate(work: Callable[[], object], times: int) -> float:
    """How often a second `work` is done in the long run.

    That goes by the best of many short tries, in time of this thread's own: what others take of a processor in between
    says nothing of the machine.
    """
    best = float("inf")
    work()
    for _ in range(_TRIES):
        started = time.thread_time()
        for _ in range(times):
            work()
        best = min(best, time.thread_time() - started)
    return _SUSTAINED * times / best
