"""Paths in a recipe begin where the recipe lies; those of the command line where the shell stands."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.formats.errors import InputError, UsageError
from compress.recipes.plan import plan
from compress.recipes.recipe import load

RECIPE = """\
model: model
passes:
  - calibrate: {data: corpus.txt, samples: 2, seq_len: 32}
  - evaluate: {data: held_out.txt, samples: 2, seq_len: 32}
"""


@pytest.fixture
def recipe(tmp_path: Path, make_model: Callable[..., Path], corpus: Path, held_out: Path) -> Path:
    """A recipe with its model and its texts beside it."""
    make_model(tmp_path / "model", "llama")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_paths_are_relative_to_the_recipe(recipe: Path, elsewhere: Path) -> None:
    assert plan(load("../recipe.yaml")).verdict == "fits"
    loaded = load("../recipe.yaml")
    assert (loaded.model, loaded.passes[0].data) == ("model", "corpus.txt")  # type: ignore[attr-defined]


def test_what_is_not_beside_the_recipe_is_looked_for_where_the_shell_stands(recipe: Path, elsewhere: Path) -> None:
    (recipe.parent / "corpus.txt").rename(elsewhere / "corpus.txt")
    assert plan(load("../recipe.yaml")).verdict == "fits"


def test_paths_of_standard_input_begin_where_the_shell_stands(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recipe.parent)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(recipe.read_bytes())))
    assert plan(load("-")).verdict == "fits"


def test_paths_of_the_command_line_begin_where_the_shell_stands(recipe: Path, elsewhere: Path) -> None:
    (elsewhere / "corpus.txt").write_text("")
    assert plan(load("../recipe.yaml")).verdict == "fits"
    with pytest.raises(InputError, match=r"--set calibrate\.data: .*no text"):
        plan(load("../recipe.yaml", ["calibrate.data=corpus.txt"]))


def test_messages_name_the_line(recipe: Path) -> None:
    (recipe.parent / "held_out.txt").unlink()
    with pytest.raises(UsageError, match=r"^recipe\.yaml:4: .*held_out\.txt is not there"):
        plan(load(str(recipe)))
