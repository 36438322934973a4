"""The page of a run: the original, what became of it, and what the run has measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compress.recipes.page.portrait import portrait_of
from compress.recipes.page.render import Page, write_page
from compress.recipes.page.scores import Row
from compress.recipes.recipe import Recipe
from compress.recipes.report import RunReport

PAGE = "report.html"


def leave_page(recipe: Recipe, report: RunReport, output: Path) -> Path:
    """Write the page of a run beside what it wrote into `output`; its path. Raises StorageError if the disk fails."""
    page = Page(
        title=f"{recipe.model}, compressed",
        rows=list(_rows(report)),
        portraits=[portrait_of(Path(artifact.path).name, Path(artifact.path)) for artifact in report.artifacts],
        recipe=recipe.text(),
        notes=[*(f"gate missed: {gate}" for gate in report.missed), *report.notes],
    )
    write_page(page, output / PAGE)
    return output / PAGE


def _rows(report: RunReport) -> Iterator[Row]:
    metrics = report.metrics
    known = metrics.kl_divergence is not None
    first = {"MB": _mega(report.source_bytes), "bits per weight": f"{8 * report.source_bytes / report.parameters:.2f}"}
    if metrics.reference_perplexity is not None:
        first |= {"perplexity": f"{metrics.reference_perplexity:.2f}", "KL": "0", "top-1": "100 %"}
    yield Row("original", report.source_bytes, 0.0 if known else None, first)
    for artifact in report.artifacts:
        figures = {"MB": _mega(artifact.bytes), "bits per weight": f"{artifact.bits_per_weight:.2f}"}
        if metrics.perplexity is not None:
            figures["perplexity"] = f"{metrics.perplexity:.2f}"
        if metrics.kl_divergence is not None and metrics.top1_agreement is not None:
            figures |= {"KL": f"{metrics.kl_divergence:.4f}", "top-1": f"{100 * metrics.top1_agreement:.1f} %"}
        yield Row(Path(artifact.path).name, artifact.bytes, metrics.kl_divergence, figures)


def _mega(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f}"
