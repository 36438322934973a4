"""README and the tutorials, as a new user would: every recipe and every command that they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typed import carry_out, commands, files, smaller

from compress.recipes.recipe import from_data

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs/tutorials").glob("*.md"))]


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny", "llama", layers=1)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_command_that_is_shown_does_what_is_said(
    document: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    text = document.read_text()
    for name, recipe in files(text, model).items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(recipe)
    typed = list(commands(text))
    assert typed
    for line in typed:
        code = carry_out(line, model, monkeypatch)
        assert code == 0, f"{line}: {capfd.readouterr().err}"
        for written in Path().glob("*.yaml"):  # by `compress init`
            written.write_text(smaller(written.read_text(), model))


def test_the_recipe_of_the_readme_is_one(model: Path) -> None:
    shown = (ROOT / "README.md").read_text().partition("A recipe is a model and passes")[2]
    recipe = from_data(yaml.safe_load(shown.partition("```yaml")[2].partition("```")[0]))
    assert [step.name for step in recipe.passes] == ["calibrate", "gptq", "evaluate", "export", "export"]
