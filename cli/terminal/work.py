"""One piece of work on its way, and a reporter that leaves the terminal as it was.

The time left is measured: from the steps done in this process, at the pace they took.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from compress.passes.core.report import Reporter

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


def figures_text(figures: dict[str, float]) -> str:
    """Figures as they follow other words."""
    return "".join(f", {name} {value:.3g}" for name, value in figures.items())
