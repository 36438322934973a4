"""Seconds of each step of a training, wall and processor, for ours and for peers alike. Imports nothing large."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Laps:
    """`seconds` and `cpu` of all that was done within `lap`, one number each time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Within, time counts."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        self._began = time.perf_counter(), _cpu()

    def end(self) -> None:
        wall, cpu = self._began
        self.seconds.append(time.perf_counter() - wall)
        self.cpu.append(_cpu() - cpu)

    def write(self, path: Path, losses: Sequence[float], before: Laps | None = None) -> None:
        """As JSON, with the loss of each step. `before`: what was done once for all steps; each bears its part."""
        shares = {kind: sum(getattr(before, kind)) / len(losses) if before else 0.0 for kind in ("seconds", "cpu")}
        found = {kind: [each + share for each in getattr(self, kind)] for kind, share in shares.items()}
        path.write_text(json.dumps({**found, "losses": list(losses)}))


def _cpu() -> float:
    """Of all threads, in user mode: what other processes do to this one shows least there."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime
