"""Paths in a recipe begin where the recipe lies; those of the command line where the shell stands."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.formats.errors import InputError, RefusedError, UsageError
from compress.recipes.origin import Origin
from compress.recipes.overrides import override
from compress.recipes.plan import plan
from compress.recipes.recipe import load
from compress.recipes.yaml import parse

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


def test_what_is_refused_within_a_place_names_it_once_and_keeps_its_kind_and_its_hint() -> None:
    origin = Origin(parse("a:\n  b: 1", "r.yaml"))
    with pytest.raises(RefusedError) as refused, origin.placing("a", "b"), origin.placing("a", "b"):
        raise RefusedError("too large", "take less")
    assert (str(refused.value), refused.value.hint) == ("r.yaml:2: too large", "take less")
    with pytest.raises(RefusedError) as refused, Origin().placing("a"):
        raise RefusedError("too large")
    assert str(refused.value) == "too large"


def test_passes_that_one_entry_stands_for_stand_where_it_does(recipe: Path) -> None:
    """And their own options where these stand: a training's, between two steps of pruning, within it."""
    steps = (
        "  - prune:\n      schedule: cubic\n      steps: 2\n      between:\n        finetune:\n          data: no.txt"
    )
    recipe.write_text(f"{RECIPE}{steps}\n  - evaluate: {{data: builtin}}\n")
    loaded = load(str(recipe))
    assert [step.name for step in loaded.passes] == ["calibrate", "evaluate", "prune", "finetune", "prune", "evaluate"]
    lines = [loaded.origin.line("passes", number) for number in range(6)]
    assert lines == [f"recipe.yaml:{line}: " for line in (3, 4, 5, 9, 5, 11)]
    assert loaded.origin.line("passes", 4, "prune", "schedule") == "recipe.yaml:6: "
    assert [loaded.origin.options(number).get("data") for number in (0, 3, 5)] == ["corpus.txt", "no.txt", "builtin"]
    with pytest.raises(UsageError, match=r"^recipe\.yaml:10: .*no\.txt is not there"):
        plan(loaded)
    with pytest.raises(
        UsageError, match=r"recipe\.yaml:10: passes\[2\]\.prune\.between\.finetune: unknown option 'dta'"
    ):
        recipe.write_text(recipe.read_text().replace("data: no", "dta: no"))
        load(str(recipe))


def test_only_values_of_the_text_are_relative_to_it() -> None:
    document = override(parse("a: {b: 1, c: 2}", "r.yaml"), "a.b=3", ["a"])
    origin = Origin(document, Path("folder"))
    assert origin.folder_of("a", "b") == Path() and origin.folder_of("a", "c") == Path("folder")
    assert (origin.line("a", "b"), origin.line("a", "c")) == ("--set a.b: ", "r.yaml:1: ")


def test_two_recipes_are_the_same_wherever_they_stand() -> None:
    assert Origin(parse("a: 1", "x.yaml"), Path("x")) == Origin()
