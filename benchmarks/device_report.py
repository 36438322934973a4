"""A report of sections, each guarded: one that fails, or takes too long, is told, and the next goes on."""

from __future__ import annotations

import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from stopwatch import wait


@dataclass(frozen=True)
class Bench:
    """Where to compute, at which size, where files may lie, and what one matrix product and one copy reach."""

    device: torch.device
    small: bool
    work: Path
    ceilings: dict[str, float] = field(default_factory=dict)

    def seconds(self, call: Callable[[], object], repeats: int = 5) -> float:
        """The median of `repeats` calls after one that warms up, the device waited for."""
        taken = []
        for _ in range(repeats + 1):
            wait(self.device)
            started = time.perf_counter()
            call()
            wait(self.device)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[1:])


class Report:
    """Markdown, line by line: printed, and kept in `path` from the first line on. `until` is when time is up."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._lines = path, list[str]()
        self._started = time.monotonic()
        self._until = self._started + seconds
        self.failed: list[str] = []

    def left(self) -> float:
        """Seconds."""
        return self._until - time.monotonic()

    def add(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)
        self._lines += lines
        self._path.write_text("\n".join(self._lines) + "\n")

    def section(self, title: str, body: Callable[[], Iterator[str]], limit: float) -> None:
        """What `body` yields, as it comes; at most `limit` seconds, and none once time is up."""
        allowed = int(min(limit, self.left()))
        self.add("", f"## {title}", "")
        if allowed < 5:
            self._fail(title, "not begun: time is up")
            return
        started = time.monotonic()
        try:
            with _alarm(allowed):
                for line in body():
                    self.add(line)
        except Exception as error:  # noqa: BLE001 - told, and the next section goes on
            self._fail(title, "".join(traceback.format_exception(error)[-6:]))
        self.add("", f"({time.monotonic() - started:.0f} s)")

    def _fail(self, title: str, why: str) -> None:
        self.failed.append(title)
        self.add("", "**Failed:**", "", "```", why.rstrip(), "```")


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def late(_: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
