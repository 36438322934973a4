"""Where time goes: seconds, operations and bytes of named work, stage by stage, each without what is done within it.

Whoever works says so with `lap`; without a profile that costs a microsecond and keeps nothing. A GPU is waited for at
both ends of a lap, so a profiled run is somewhat slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

_SIDE, _COPIED = 1024, 1 << 26


@dataclass
class Lap:
    """Work of one kind: how often, how long, floating-point operations of matrix products, bytes read or written."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    nbytes: int = 0


@dataclass
class Laps:
    """`stages`: by stage, then by kind of work. `total` is the seconds of a stage, whatever was done in them."""

    stages: dict[str, dict[str, Lap]] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    _within: list[float] = field(default_factory=lambda: [0.0])
    _stage: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within, laps are those of this stage."""
        self._stage, started = name, time.perf_counter()
        try:
            yield
        finally:
            self.total[name] = self.total.get(name, 0.0) + time.perf_counter() - started
            self._stage = ""

    @contextmanager
    def lap(self, work: str, flops: float, nbytes: int) -> Iterator[Lap]:
        """See `lap`."""
        _wait()
        started = time.perf_counter()
        self._within.append(0.0)
        one = self.stages.setdefault(self._stage, {}).setdefault(work, Lap())
        try:
            yield one
        finally:
            _wait()
            taken = time.perf_counter() - started
            one.calls += 1
            one.seconds += taken - self._within.pop()
            one.flops += flops
            one.nbytes += nbytes
            self._within[-1] += taken


_kept: ContextVar[Laps | None] = ContextVar("_kept", default=None)


@contextmanager
def profiled(wanted: bool = True) -> Iterator[Laps | None]:
    """Within, laps are kept, if `wanted`."""
    token = _kept.set(Laps() if wanted else None)
    try:
        yield _kept.get()
    finally:
        _kept.reset(token)


def laps() -> Laps | None:
    """Those that are being kept."""
    return _kept.get()


@contextmanager
def lap(work: str, flops: float = 0.0, nbytes: int = 0) -> Iterator[Lap]:
    """What is done within is `work`, and takes so many operations, or reads or writes so many bytes.

    What is known of either at the end only may be added to what it gives.
    """
    kept = _kept.get()
    if kept is None:
        yield Lap()
        return
    with kept.lap(work, flops, nbytes) as one:
        yield one


def product_rate(device: torch.device) -> float:
    """Operations a second that one product of fp32 matrices reaches on `device`."""
    side = torch.ones(_SIDE, _SIDE, device=device)
    return 2 * _SIDE**3 / least_seconds(lambda: side @ side)


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, that one copy reaches on `device`."""
    return 2 * _COPIED / least_seconds(torch.ones(_COPIED // 4, device=device).clone)


def least_seconds(work: Callable[[], object]) -> float:
    """Of a few tries the shortest: what else a machine does only ever slows them down."""
    best = float("inf")
    for _ in range(6):
        _wait()
        started = time.perf_counter()
        work()
        _wait()
        best = min(best, time.perf_counter() - started)
    return best


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
