"""Progress as a live bar on a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from compress.cli.terminal.units import counted, duration, plural
from compress.cli.terminal.work import Clock, TerminalReporter, Work, figures_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


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
            TextColumn(plural(unit), table_column=fixed()),
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

    def tell(self, label: str) -> None:
        if self._work is None:
            self._show(label)
        elif self._bar is not None and self._task is not None:
            self._bar.update(self._task, latest=label)

    def _show(self, label: str) -> None:
        """A line for what is no piece of work yet: what it is, and for how long."""
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=label)
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
        self._bar.start()
        self._task = self._bar.add_task(label, total=None)

    def advance(self, label: str = "", **figures: float) -> None:
        if self._work is None or self._bar is None or self._task is None:
            return
        self._work.steps += 1
        left = self._work.left(self._clock())
        about = f"{duration(left)} left" if left is not None else ""
        self._bar.update(self._task, advance=1, left=about, latest=f"{label}{figures_text(figures)}")

    def finish(self) -> None:
        work = self._work
        self._close()
        if work is not None:
            spent = duration(self._clock() - work.started)
            self.note(f"{work.title}: {counted(work.total, work.unit)} in {spent}")

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
