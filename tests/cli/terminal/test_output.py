"""Standard output holds tables for people, or exactly one JSON object that any parser reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from compress.cli.terminal.output import emit, print_json


def view() -> Iterator[str]:
    yield "for people"


def test_a_result_is_shown_one_way_or_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": 1}, True, view)
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    emit({"a": 1}, False, view)
    assert capsys.readouterr().out == "for people\n"


def test_numbers_that_json_has_not_are_null_at_any_depth(capsys: pytest.CaptureFixture[str]) -> None:
    nan, infinity = float("nan"), float("inf")
    print_json({"a": nan, "b": [infinity, (-infinity, 1.5)], "c": {"d": nan, "e": "nan"}, "f": 10**400, "g": True})

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"a": None, "b": [None, [None, 1.5]], "c": {"d": None, "e": "nan"}, "f": 10**400, "g": True}


def test_words_stay_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"model": "Größe"})
    assert "Größe" in capsys.readouterr().out
