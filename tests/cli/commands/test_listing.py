"""What there is: listings are read from files without importing them, and say what the classes say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from compress import formats, passes
from compress.cli.app import main
from compress.cli.commands import listing
from compress.formats.errors import UsageError
from compress.recipes import bundled
from compress.recipes.engines.verdicts import targets


def first_line(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def test_a_listing_says_what_the_classes_say() -> None:
    assert passes.summaries() == {name: first_line(passes.get(name)) for name in passes.names()}
    assert formats.summaries() == {name: first_line(kind) for name, kind in formats.dialects().items()}
    assert formats.engines() == sorted({engine for kind in formats.dialects().values() for engine in kind.loads})
    assert set(formats.engines()) <= set(targets())


def test_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes"]) == main(["dialects"]) == main(["passes", "gptq"]) == main(["dialects", "gguf"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "calibrate",
        "rtn",
        "gguf",
        "dense",
        "group_size",
        "integer 2…8, may vary",
        "int | nf4",
        "default: 4}",
        "q8_0",
    ):
        assert word in shown
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["passes"]
    assert main(["passes", "--json"]) == 0
    assert "gptq" in json.loads(capsys.readouterr().out)
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == bundled.summaries()


def test_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert (tmp_path / "recipe.yaml").read_text().startswith("# A recipe to start from")
    assert main(["init"]) == 2
    assert main(["init", "no/where/recipe.yaml"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", bundled.names())
def test_init_writes_any_bundled_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "-", "--from", name]) == 0
    assert capsys.readouterr().out.encode() == bundled.read(name)
    assert bundled.summaries()[name]


def test_init_knows_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "-", "--from", "quikstart"]) == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


@pytest.mark.parametrize(("ask", "name"), [(listing.passes, "gptq"), (listing.dialects, "gguf")])
def test_a_name_that_there_is_not_is_answered_with_the_nearest(ask: Callable[[str], None], name: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{name}'?"):
        ask(name[:-2] + name[:-3:-1])
