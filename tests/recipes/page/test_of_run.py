"""The page that a run leaves."""

from __future__ import annotations

from pathlib import Path

from html_page import reading

from compress.recipes.page.of_run import PAGE, leave_page
from compress.recipes.recipe import from_data
from compress.recipes.run import run


def test_a_run_is_shown_with_all_it_wrote(tiny_llama: Path, held_out: Path, tmp_path: Path) -> None:
    measured = {"evaluate": {"data": str(held_out), "samples": 1, "seq_len": 32}}
    exports = [{"export": {"dialect": "gptq"}}, {"export": {"dialect": "gguf", "type": "q8_0"}}]
    steps = [{"rtn": {"bits": 4, "group_size": 32}}, measured, *exports]
    recipe = from_data({"model": str(tiny_llama), "passes": steps})
    report = run(recipe, tmp_path / "out").model_copy(update={"missed": ["max_kl: 2 is above 1"]})
    assert leave_page(recipe, report, tmp_path / "out") == tmp_path / "out" / PAGE
    page = reading(tmp_path / "out" / PAGE)
    assert page.asks == [] and page.figures == ["size-kl", "bits-1", "errors-1", "bits-2", "errors-2"]
    size = f"{report.artifacts[0].bytes / 1e6:.1f} {report.artifacts[0].bits_per_weight:.2f}"
    assert f"gptq ★ {size}" in page.text or f"gptq {size}" in page.text
    assert f"{report.metrics.kl_divergence:.4f}" in page.text and "max_kl: 2 is above 1" in page.text
    assert "group_size: 32" in page.text and "llama.cpp loads it" in page.text
