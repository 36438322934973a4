"""Where a recipe was written: the lines for messages, and the folder that its relative paths begin at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.formats.errors import CompressError
from compress.recipes import yaml
from compress.recipes.overrides import SET
from compress.recipes.yaml import Document

_NO_TEXT = Document("recipe", {}, {})


@dataclass(frozen=True)
class Origin:
    """A recipe's text. Two recipes are the same wherever they stand, so it takes no part in comparing."""

    document: Document = field(default=_NO_TEXT, compare=False)
    folder: Path = field(default=Path(), compare=False)
    steps: Sequence[yaml.Path] = field(default=(), compare=False)
    """Where the options of each pass stand: one entry of the list may stand for several passes (`Pass.unfolded`)."""

    def line(self, *path: str | int) -> str:
        """`recipe.yaml:7: ` for what stands at `path`; empty for a recipe that was not read from a text."""
        return f"{self.document.where(self._written(path))}: " if self.document.places else ""

    def options(self, number: int) -> Mapping[str, Any]:
        """The options of a pass, by its number, as they were written; empty for a recipe that was not read."""
        found = self.document.data if self.steps else {}
        for part in self.steps[number] if self.steps else ():
            found = found[part]
        return found if isinstance(found, Mapping) else {}

    def _written(self, path: yaml.Path) -> yaml.Path:
        """`path`, which begins with the number of a pass and its name, in the text."""
        if len(path) < 2 or path[0] != "passes" or not isinstance(number := path[1], int) or not self.steps:
            return path
        return (*self.steps[number], *path[3:])

    @contextmanager
    def placing(self, *path: str | int) -> Iterator[None]:
        """Whatever is refused within speaks of what stands at `path`, or in it: its line goes before the message."""
        try:
            yield
        except CompressError as error:
            if str(error).startswith(line := self.line(*path, *error.at)):
                raise
            raise type(error)(f"{line}{error}", error.hint) from error

    def folder_of(self, *path: str | int) -> Path:
        """Where the relative path that stands at `path` begins: with the recipe, or where the shell stands."""
        return Path() if self.document.where(self._written(path)).startswith(SET) else self.folder
