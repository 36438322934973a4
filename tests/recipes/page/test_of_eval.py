"""The page of an evaluation."""

from __future__ import annotations

from pathlib import Path

from html_page import reading

from compress.recipes.jobs.evaluate import EvalResult, Figures
from compress.recipes.page.of_eval import write_comparison


def test_checkpoints_stand_side_by_side_text_by_text(tiny_llama: Path, tmp_path: Path) -> None:
    domain = Figures(perplexity=9, kl_divergence=0.5, kl_p999=2.25, top1_agreement=0.5, tokens=10)
    one = EvalResult(
        **domain.model_dump(),
        path=str(tiny_llama),
        bytes=2_000_000,
        domains={"code.txt": domain},
        tokens_per_second=81.26,
    )
    write_comparison([one, one.model_copy(update={"kl_divergence": 0.25})], tmp_path / "page.html")
    page = reading(tmp_path / "page.html")
    assert page.asks == [] and page.figures == ["size-kl", "bits-1", "bits-2"]
    assert "2.0 9.000 0.5000 50.0 % 2.250 81.3 9.000 0.5000 50.0 % 2.250" in page.text
    assert "KL 99.9 %, code.txt" in page.text
