"""The page: nothing is loaded from elsewhere, nothing that is given becomes markup, every figure is there."""

from __future__ import annotations

from pathlib import Path

from html_page import Reading, cells_of, reading

from compress.passes.artifact.curves import draw
from compress.recipes.engines.verdicts import Verdict
from compress.recipes.page.portrait import Portrait
from compress.recipes.page.render import Page, render, write_page
from compress.recipes.page.scores import Row

EVIL = '<script>alert("x")</script>'
TRAINING = {"pass": "distill", "losses": [1.0, 0.5], "measured": [[0, 1.0], [2, 0.5]]}
PORTRAIT = Portrait(
    name=EVIL,
    dialect="gguf",
    bits={"mlp": {0: 4.5, 3: 8.5}},
    ends={EVIL: "float16"},
    errors={"mlp": {0: 1e-4, 3: 1e-2}},
    curves={EVIL: draw(TRAINING)},
    verdicts=(
        Verdict(target="vllm", path="x", loads=False, reason=EVIL),
        Verdict(target="llama.cpp", path="x", loads=True),
    ),
)
ROWS = [Row("original", 100, 0.0, {"MB": "100"}), Row(EVIL, 30, 0.1, {"MB": "30", EVIL: EVIL})]


def test_it_opens_offline_and_shows_all_figures() -> None:
    page = Reading(render(Page(EVIL, ROWS, [PORTRAIT], EVIL, [EVIL])))
    assert page.asks == [] and page.policy.startswith("default-src 'none'")
    assert page.figures == ["size-kl", "bits-1", "errors-1", "training-1-1"] and page.drawn == 2
    assert page.text.count(EVIL) > 8  # as text
    assert "vllm does not load it" in page.text and "llama.cpp loads it" in page.text


def test_a_map_has_a_cell_a_layer_the_darker_the_more() -> None:
    html = render(Page("it", ROWS, [PORTRAIT]))
    assert [title for title in cells_of(html) if "bits" in title] == ["layer 0: 4.50 bits", "layer 3: 8.50 bits"]
    assert html.index("0.08)") < html.index("layer 0: 4.50") < html.index("1.00)") < html.index("layer 3: 8.50")


def test_without_figures_the_table_stays(tmp_path: Path) -> None:
    write_page(Page("it", [Row("original", 100, None, {"MB": "100"})], []), tmp_path / "it.html")
    page = reading(tmp_path / "it.html")
    assert page.figures == [] and "original 100" in page.text
