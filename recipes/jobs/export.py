"""`compress export`: from one dialect to another, exactly or not at all unless asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    step = {**options, "dialect": dialect, "requantize": requantize}
    recipe = build(Document("export", {"model": artifact, "passes": [{"export": step}]}, {}))
    reporter = reporter or Reporter()
    report = run(recipe, output, reporter=reporter)
    for note in report.notes:
        reporter.note(note)
    return report.artifacts[0]
