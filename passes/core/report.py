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
