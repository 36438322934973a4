"""The page of an evaluation: checkpoints side by side, and what is in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compress.formats.files.source import resolve
from compress.recipes.artifacts import artifact_at
from compress.recipes.jobs.evaluate import EvalResult, Figures
from compress.recipes.page.portrait import portrait_of
from compress.recipes.page.render import Page, write_page
from compress.recipes.page.scores import Row


def write_comparison(results: Sequence[EvalResult], path: Path) -> None:
    """Write to `path` the page of `results`. Raises StorageError if the disk fails."""
    rows = [Row(found.path, found.bytes, found.kl_divergence, _figures(found)) for found in results]
    portraits = [portrait_of(found.path, artifact_at(resolve(found.path))) for found in results]
    write_page(Page(f"{len(rows)} checkpoints side by side", rows, portraits), path)


def _figures(found: EvalResult) -> dict[str, str]:
    figures = {"MB": f"{found.bytes / 1e6:.1f}", **_scores(found, "")}
    if found.tokens_per_second is not None:
        figures["tokens/s"] = f"{found.tokens_per_second:.1f}"
    for text, domain in found.domains.items():
        figures |= _scores(domain, f", {text}")
    return figures


def _scores(found: Figures, of: str) -> dict[str, str]:
    scores = {f"perplexity{of}": f"{found.perplexity:.3f}"}
    if found.kl_divergence is not None and found.top1_agreement is not None:
        scores |= {f"KL{of}": f"{found.kl_divergence:.4f}", f"top-1{of}": f"{100 * found.top1_agreement:.1f} %"}
    if found.kl_p999 is not None:
        scores[f"KL 99.9 %{of}"] = f"{found.kl_p999:.3f}"
    return scores
