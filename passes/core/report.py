"""How long work tells what it is doing. The command line draws it; a library user may ignore it."""

from __future__ import annotations


class Reporter:
    """Receives progress. This base class is silent; `compress.cli.terminal` has those that draw."""

    def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """A piece of work of `total` steps begins; `done` of them an earlier run has already done."""

    def tell(self, label: str) -> None:
        """What is being done now, as `embedding the sequences`: within a step, or before any work began."""

    def advance(self, label: str = "", **figures: float) -> None:
        """One step is done. `figures` are worth showing beside it (an error, a loss)."""

    def finish(self) -> None:
        """The piece of work ended."""

    def note(self, message: str) -> None:
        """Something that the user should know: a fallback, a substitution, a resumed run."""


class Within(Reporter):
    """Tells of a piece of work that is a part of a larger one, by `name`: its steps are steps of the larger one."""

    def __init__(self, larger: Reporter, name: str) -> None:
        self._larger, self._name = larger, name

    def tell(self, label: str) -> None:
        self._larger.tell(f"{self._name}: {label}")

    def advance(self, label: str = "", **figures: float) -> None:
        self._larger.advance(f"{self._name}: {label}", **figures)

    def note(self, message: str) -> None:
        self._larger.note(message)
