"""The site is built strictly: no broken link, no command or option that is not there, no figure of nobody's."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from compress import passes
from compress.cli.app import main
from compress.recipes.engines.verdicts import targets
from compress.recipes.recipe import from_data

ROOT = Path(__file__).parents[1]
HEADINGS = ["When to use it", "Cost", "Measured", "Options", "What it computes"]
_YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """site(page) → its text, as a reader sees it."""
    config, build = pytest.importorskip("mkdocs.config"), pytest.importorskip("mkdocs.commands.build")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))

    def read(page: str) -> str:
        return " ".join(unescape(re.sub(r"<[^>]+>", "", (folder / page / "index.html").read_text())).split())

    return read


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """pages(module of docs/pages) → it."""
    monkeypatch.syspath_prepend(ROOT / "docs/pages")
    return import_module


def test_every_pass_has_a_page_with_its_options_and_when_to_use_it(site: Callable[[str], str]) -> None:
    for name in passes.names():
        text = site(f"passes/{name}")
        found = [text.rindex(f"{heading}¶") for heading in HEADINGS]
        assert found == sorted(found), name
        table = text[found[3] : found[4]]
        assert [option for option in passes.get(name).model_fields if f" {option} " not in table] == [], name


def test_figures_are_quoted_with_their_commit(site: Callable[[str], str]) -> None:
    row = next(
        line for line in (ROOT / "benchmarks/RESULTS.md").read_text().splitlines() if "| compress gptq |" in line
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    measured = site("passes/gptq").rpartition("Measured¶")[2]
    assert cells[2] in measured and cells[-1] in measured and "<!--" not in measured


def test_every_engine_and_every_command_has_its_place(
    site: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert all("Containers: " in site(f"engines/{name}") for name in targets())
    rows = (ROOT / "docs/ENGINES.md").read_text().splitlines()
    cell = next(line for line in rows if line.startswith("| gptq 4-bit g64 | gptq |")).split("|")[4].strip()
    assert cell.startswith("within ") and cell in site("engines/vllm")
    assert "Integer grids have no zero points" in site("engines/vllm")
    main(["run", "--help"])
    assert " ".join(capsys.readouterr().out.split()) in site("reference/commands")


def test_examples_of_passes_are_recipes() -> None:
    for path in sorted((ROOT / "docs/passes").glob("*.md")):
        examples = [yaml.safe_load(example) for example in _YAML.findall(path.read_text())]
        assert examples, path
        for steps in examples:
            assert path.stem in [name for step in steps for name in step]
            from_data({"model": "some/model", "passes": steps})


def test_what_users_are_told_to_type_exists(pages: Callable[[str], ModuleType]) -> None:
    check = pages("of_commands").check
    check("```console\ncompress run my.yaml --junit gates.xml && compress verify out/x  # compress nonsense\n```")
    check("`compress eval PATH… [--reference P]` or `compress --install-completion`, and to compress nonsense")
    for told, wrong in (("`compress nonsense x`", "nonsense"), ("`compress run x --jnuit f`", "--jnuit")):
        with pytest.raises(ValueError, match=wrong):
            check(told)


def test_a_figure_that_nobody_measured_is_an_error(pages: Callable[[str], ModuleType]) -> None:
    quoted, folder = pages("of_results").quoted, ROOT / "benchmarks"
    for mark in ("rows of RESULTS.md: compress magic", "says RESULTS.md: Magic"):
        with pytest.raises(ValueError, match=r"(?i)magic"):
            quoted(f"<!-- {mark} -->", folder)
