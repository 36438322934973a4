"""What is timed: artifacts in engines, alone or with a draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from compress.formats import dialects, open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError
from compress.formats.files.source import resolve
from compress.passes.core.report import Reporter
from compress.recipes.artifacts import artifact_at
from compress.recipes.engines.choice import check_holds, named_by, objections
from compress.recipes.engines.machine import this_machine


class Named(NamedTuple):
    """A checkpoint, and how it was named."""

    path: str
    artifact: Checkpoint


@dataclass(frozen=True, eq=False)
class Case:
    """An artifact in an engine; `draft` proposes tokens to it."""

    path: str
    artifact: Checkpoint
    engine: str
    draft: Named | None = None

    def __str__(self) -> str:
        return f"{self.path} in {self.engine}" + (f", {self.draft.path} drafts" if self.draft else "")

    def refuse(self) -> None:
        """Raise RefusedError if a fact stands against the artifact, or the draft, in every build of the engine."""
        if not self.engine:
            loads = ", ".join(dialects()[self.artifact.dialect].loads)
            raise RefusedError(
                f"{self.artifact.dialect} files load in {loads}, which are not timed in a process of ours"
            )
        machine = this_machine()
        for artifact in (self.artifact, *([self.draft.artifact] if self.draft else [])):
            found = objections(self.engine, artifact, machine)
            if all(found.values()):
                raise next(filter(None, found.values()))


def cases_of(paths: Sequence[str], engines: Sequence[str], draft: str | None, reporter: Reporter) -> list[Case]:
    """Every path in each of `engines`, or of those that its container is for; with `draft`, once without and once with.

    Raises UsageError for an engine that has no writer, InputError for what is no checkpoint.
    """
    wanted = [check_holds(engine, "writer", "writer: time its server by --url") for engine in engines]
    drafting = _named(draft, reporter) if draft else None
    return [
        Case(path, artifact, engine, by)
        for path, artifact in (_named(path, reporter) for path in paths)
        for engine in wanted or named_by(artifact, "writer") or [""]
        for by in ([None, drafting] if drafting else [None])
    ]


def _named(path: str, reporter: Reporter) -> Named:
    return Named(path, open_checkpoint(artifact_at(resolve(path, progress=reporter.note), "compress bench")))
