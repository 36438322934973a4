"""Progress on standard error: a live bar on a terminal, plain lines elsewhere.

The time left is measured: from the steps done in this process, at the pace they took.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from compress.cli.terminal.units import duration
from compress.passes.core.report import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Clock = Callable[[], float]


@dataclass
class Work:
    """One piece of work: how far it is, and how long it will still take."""

    title: str
    total: int
    unit: str
    resumed: int
    started: float
    steps: int = 0

    @property
    def done(self) -> int:
        return self.resumed + self.steps

    def left(self, now: float) -> float | None:
        """Seconds left; None before the first step of this process."""
        if self.steps == 0:
            return None
        return (now - self.started) / self.steps * max(self.total - self.done, 0)


class TerminalReporter(Reporter):
    """A reporter that is a context manager, so that the terminal is itself again whatever happens."""

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""


class PlainReporter(TerminalReporter):
    """A line when work begins and ends, and one every `every` seconds between."""

    def __init__(self, stream: TextIO, every: float = 10.0, clock: Clock = time.monotonic) -> None:
        self._stream, self._every, self._clock = stream, every, clock
        self._work: Work | None = None
        self._told = 0.0

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self._told = self._clock()
        self._work = Work(title, total, unit, done, self._told)
        self._say(f"{title}: {total} {unit}s" + (f", {done} of them done before" if done else ""))

    def advance(self, label: str = "", **figures: float) -> None:
        work = self._work
        if work is None:
            return
        work.steps += 1
        now = self._clock()
        if now - self._told >= self._every and work.done < work.total:
            self._told = now
            left = work.left(now)
            about = f", about {duration(left)} left" if left is not None else ""
            spent = f"{duration(now - work.started)}{about}{_figures(figures)}"
            self._say(f"{work.title}: {work.done}/{work.total} {work.unit}s, {spent}")

    def finish(self) -> None:
        if self._work is not None:
            self._say(f"{self._work.title}: done in {duration(self._clock() - self._work.started)}")
        self._work = None

    def note(self, message: str) -> None:
        self._say(message)

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveReporter(TerminalReporter):
    """A bar with elapsed time, time left, and what was done last."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._clock = clock
        self._work: Work | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        def fixed() -> Column:
            return Column(no_wrap=True)

        self._close()
        self._work = Work(title, total, unit, done, self._clock())
        self._bar = Progress(
            TextColumn("{task.description}", markup=False, table_column=fixed()),
            BarColumn(bar_width=24, table_column=fixed()),
            MofNCompleteColumn(table_column=fixed()),
            TextColumn(f"{unit}s", table_column=fixed()),
            TimeElapsedColumn(table_column=fixed()),
            TextColumn("{task.fields[left]}", style="cyan", markup=False, table_column=fixed()),
            # Takes what room is left: a long tensor name must not squeeze the figures.
            TextColumn("{task.fields[latest]}", style="dim", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            console=self._console,
            transient=True,
            expand=True,
            refresh_per_second=4,
        )
        self._bar.start()
        self._task = self._bar.add_task(title, total=total, completed=done, left="", latest="")

    def advance(self, label: str = "", **figures: float) -> None:
        if self._work is None or self._bar is None or self._task is None:
            return
        self._work.steps += 1
        left = self._work.left(self._clock())
        about = f"{duration(left)} left" if left is not None else ""
        self._bar.update(self._task, advance=1, left=about, latest=f"{label}{_figures(figures)}")

    def finish(self) -> None:
        work = self._work
        self._close()
        if work is not None:
            spent = duration(self._clock() - work.started)
            self.note(f"{work.title}: {work.total} {work.unit}s in {spent}")

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, style="dim", soft_wrap=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._work = self._bar = self._task = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def reporter_for(quiet: bool) -> TerminalReporter:
    """The reporter that suits standard error."""
    if quiet:
        return TerminalReporter()
    return LiveReporter() if sys.stderr.isatty() else PlainReporter(sys.stderr)


def _figures(figures: dict[str, float]) -> str:
    return "".join(f", {name} {value:.3g}" for name, value in figures.items())
