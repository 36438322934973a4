"""`compress export`: from one dialect to another, exactly or not at all unless asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.formats.errors import CompressError
from compress.formats.views.fit import REQUANTIZE
from compress.passes.core.report import Reporter
from compress.recipes.recipe import build
from compress.recipes.report import ArtifactReport
from compress.recipes.run import run
from compress.recipes.yaml import Document


def export(
    artifact: str,
    dialect: str,
    options: Mapping[str, Any],
    output: Path,
    *,
    requantize: bool = False,
    reporter: Reporter | None = None,
) -> ArtifactReport:
    """Convert a checkpoint: a recipe of one step. Raises RefusedError for what `dialect` cannot hold exactly."""
    step = {"dialect": dialect, **options, **({"requantize": True} if requantize else {})}
    recipe = build(Document("export", {"model": artifact, "passes": [{"export": step}]}, {}))
    reporter = reporter or Reporter()
    with _hints_of_commands():
        report = run(recipe, output, reporter=reporter)
    for note in report.notes:
        reporter.note(note)
    return report.artifacts[0]


@contextmanager
def _hints_of_commands() -> Iterator[None]:
    """What a hint says in words of recipes, in those of the command line."""
    try:
        yield
    except CompressError as error:
        hint = error.hint.replace(f"say {REQUANTIZE}", "give --requantize")
        raise type(error)(str(error), re.sub(r"`?dialect: ([\w-]+)`?", r"--dialect \1", hint)) from error
