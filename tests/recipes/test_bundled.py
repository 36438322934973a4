"""The recipes that come with the program: each says when to take it, and plans for any model."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.recipes import bundled
from compress.recipes.plan import plan
from compress.recipes.recipe import load

SHORT = ["calibrate.seq_len=32", "evaluate.seq_len=32", "calibrate.samples=8", "evaluate.samples=2"]


@pytest.mark.parametrize("name", bundled.names())
def test_every_one_plans_for_a_small_model(name: str, tiny_llama: Path) -> None:
    planned = plan(load(name, [f"model={tiny_llama}", *SHORT]))
    assert planned.verdict == "fits" and planned.artifacts


@pytest.mark.model
@pytest.mark.parametrize("name", bundled.names())
def test_every_one_plans_for_its_own_model(name: str) -> None:
    assert plan(load(name)).verdict == "fits"


def test_every_one_says_when_to_take_it() -> None:
    for name, said in bundled.summaries().items():
        assert bundled.read(name).startswith(b"# ") and said, name
