"""What a user is told while a run works, kept for a test to read."""

from __future__ import annotations

from compress.passes.core.report import Reporter


class Notes(Reporter):
    """The notes, in their order: `"some words" in notes` is whether one of them has these words."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    def __contains__(self, text: object) -> bool:
        return any(str(text) in line for line in self.said)
