"""Progress as plain lines, for pipes, files and CI: never silent for long."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TextIO

from compress.cli.terminal.units import counted, duration, plural
from compress.cli.terminal.work import Clock, TerminalReporter, Work, figures_text


class PlainReporter(TerminalReporter):
    """A line when work begins and ends, and one at least every `every` seconds between.

    As a context manager it says so much wherever the work hangs: in a library, a download, a slow disk. A thread
    looks at the clock for that; it prints nothing but `still …`.
    """

    def __init__(self, stream: TextIO, every: float = 10.0, clock: Clock = time.monotonic) -> None:
        self._stream, self._every, self._clock = stream, every, clock
        self._work: Work | None = None
        self._at = ""
        self._said = self._since = clock()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> PlainReporter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        with self._lock:
            self._at, self._work = "", Work(title, total, unit, done, self._clock())
            self._say(f"{title}: {counted(total, unit)}" + (f", {done} of them done before" if done else ""))

    def tell(self, label: str) -> None:
        with self._lock:
            self._at, self._since = label, self._clock()

    def advance(self, label: str = "", **figures: float) -> None:
        with self._lock:
            if self._work is None:
                return
            self._work.steps += 1
            self._at = ""
            if self._due() and self._work.done < self._work.total:
                self._say(self._state(self._work) + figures_text(figures))

    def finish(self) -> None:
        with self._lock:
            if self._work is not None:
                self._say(f"{self._work.title}: done in {duration(self._clock() - self._work.started)}")
            self._work, self._at, self._since = None, "", self._clock()

    def note(self, message: str) -> None:
        with self._lock:
            self._say(message)

    def beat(self) -> None:
        """Say what goes on, if nothing was said for long."""
        with self._lock:
            if not self._due():
                return
            still = f"still {self._at or 'at it'}"
            if self._work is not None:
                self._say(f"{self._state(self._work)}, {still}")
            else:
                self._say(f"{still}, {duration(self._clock() - self._since)}")

    def _watch(self) -> None:
        while not self._ended.wait(self._every / 10):
            self.beat()

    def _due(self) -> bool:
        return self._clock() - self._said >= self._every

    def _state(self, work: Work) -> str:
        now = self._clock()
        left = work.left(now)
        about = f", about {duration(left)} left" if left is not None else ""
        return f"{work.title}: {work.done}/{work.total} {plural(work.unit)}, {duration(now - work.started)}{about}"

    def _say(self, line: str) -> None:
        self._said = self._clock()
        print(line, file=self._stream, flush=True)
