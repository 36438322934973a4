"""Shares of a blend: whole, in proportion, with the right sum, whatever the weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compress.passes.forward.texts.blend import Part, beside, shares

WEIGHTS = st.lists(st.floats(min_value=0, exclude_min=True, allow_infinity=False), min_size=1, max_size=6)


def test_shares_are_in_proportion() -> None:
    assert shares(10, [3, 1, 1]) == [6, 2, 2]
    assert shares(10, [1, 1, 1]) == [4, 3, 3]
    assert shares(7, [0.5]) == [7]
    assert shares(3, [1, 1e-9]) == [3, 0]


@given(st.integers(1, 1 << 20), WEIGHTS)
def test_shares_are_whole_and_within_one_of_their_proportion(samples: int, weights: list[float]) -> None:
    found, largest = shares(samples, weights), max(weights)
    assert sum(found) == samples and min(found) >= 0
    scaled = [weight / largest for weight in weights]  # their sum may be too large for a float
    for share, weight in zip(found, scaled):
        assert abs(share - samples * weight / math.fsum(scaled)) < 1 + 1e-6


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    with pytest.raises(ValidationError):
        Part(path="a.txt", weight=weight)


def test_a_part_is_a_text_that_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "link").symlink_to("text.txt")
    for name in ("text.txt", "link", "./text.txt"):
        assert Part(path=name).text(tmp_path) == str(tmp_path / "text.txt")
    assert Part(path="some/set", split="test").text(tmp_path) == "some/set (test)"
    assert Part(path="builtin").text(tmp_path) is None
    assert Part(path="absent.txt").file(tmp_path) == Path("absent.txt")
    long = "a" * 5000
    assert beside(tmp_path, long) == Path(long) and Part(path=long).file(tmp_path) is None
