"""report.html in a real browser: it asks for nothing, complains of nothing, and what it draws can be seen.

Debian's `chromium` shows it, playwright drives it: `make browser`. Where one is missing these tests are skipped.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compress.recipes.page.of_run import PAGE, leave_page
from compress.recipes.recipe import from_data
from compress.recipes.run import run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make browser")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium, then make browser")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield started
        started.close()


@dataclass
class Shown:
    """A page as it is shown, what the browser complained of, and what it asked for beside the page itself."""

    page: Any
    complaints: list[str]
    requests: list[str]


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Shown]]:
    """show(file, width) → the file in a window of so many pixels, without a network."""
    context = browser.new_context(offline=True)

    def opened(file: Path, width: int = 1280) -> Shown:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        shown = Shown(page, [], [])
        page.on("console", lambda message: shown.complaints.append(message.text))
        page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        page.on("request", lambda request: shown.requests.append(request.url))
        page.goto(file.as_uri(), wait_until="load")
        shown.requests.remove(file.as_uri())
        return shown

    yield opened
    context.close()


def blue(screenshot: bytes) -> int:
    """How many pixels are bluer than red: lines, marks and cells of maps are."""
    pixels = np.asarray(Image.open(io.BytesIO(screenshot)).convert("RGB"), dtype=int)
    return int((pixels[..., 2] - pixels[..., 0] > 40).sum())


@pytest.fixture(scope="module")
def report(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves that trains, quantizes, measures and writes two containers."""
    folder = tmp_path_factory.mktemp("run")
    small = {"data": "builtin", "samples": 8, "seq_len": 32}
    steps = [
        {"finetune": {**small, "steps": 3, "held_out": 2}},
        {"rtn": {"bits": 4, "group_size": 32}},
        {"evaluate": {**small, "samples": 2}},
        {"export": {"dialect": "gptq"}},
        {"export": {"dialect": "gguf", "type": "q8_0"}},
    ]
    recipe = from_data({"model": str(make_model(folder / "model", "llama")), "passes": steps})
    leave_page(recipe, run(recipe, folder / "out"), folder / "out")
    return folder / "out" / PAGE


def test_it_asks_for_nothing_and_the_browser_has_nothing_to_say(show: Callable[..., Shown], report: Path) -> None:
    shown = show(report)
    assert (shown.complaints, shown.requests) == ([], [])


@pytest.mark.parametrize("width", [1280, 400])
def test_every_figure_can_be_seen(show: Callable[..., Shown], report: Path, width: int) -> None:
    page = show(report, width).page
    figures = page.locator("figure")
    names = [figure.get_attribute("id") for figure in figures.all()]
    each = [f"{kind}-{of}" for of in (1, 2) for kind in ("bits", "errors", "training")]
    assert [name.removesuffix("-1") if "training" in name else name for name in names] == ["size-kl", *each]
    for figure in figures.all():
        drawn = figure.locator("svg, table").first
        box = drawn.bounding_box()
        assert box["width"] > 60 and box["height"] > 15 and figure.bounding_box()["width"] <= width
        assert blue(drawn.screenshot()) > 20
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_names_of_models_stand_in_the_plot(show: Callable[..., Shown], report: Path) -> None:
    plot = show(report).page.locator("#size-kl svg")
    inside = plot.bounding_box()
    for name in ("original", "gptq", "gguf-q8_0"):
        box = plot.locator("text", has_text=name).first.bounding_box()
        assert box["x"] >= inside["x"] and box["x"] + box["width"] <= inside["x"] + inside["width"], name


def test_its_policy_keeps_what_would_load_from_loading(show: Callable[..., Shown], report: Path) -> None:
    """Or the tests above could not fail."""
    there = report.with_name("doctored.html")
    more = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "run"</script>'
    there.write_text(report.read_text().replace("</body>", f"{more}</body>"))
    shown = show(there)
    assert len(shown.complaints) >= 2 and all("Content Security Policy" in told for told in shown.complaints)
    assert shown.page.title() != "run"
