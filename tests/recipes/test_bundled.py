"""The recipes that come with the program: each says when to take it, and plans for any model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from compress.recipes import bundled
from compress.recipes.plan import plan
from compress.recipes.recipe import load

SHORT = {
    "calibrate": ["seq_len=32", "samples=8"],
    "distill": ["seq_len=32", "samples=24", "steps=2"],
    "evaluate": ["seq_len=32", "samples=2"],
}


@pytest.mark.parametrize("name", bundled.names())
def test_every_one_plans_for_a_small_model(name: str, tiny_llama: Path) -> None:
    passes = {key for step in yaml.safe_load(bundled.read(name))["passes"] for key in step}
    short = [f"{key}.{option}" for key in SHORT if key in passes for option in SHORT[key]]
    # What it heals is quantized, and its teacher has the same vocabulary: this model has no scales.
    taught = [f"distill.teacher={tiny_llama}", "distill.train=norms"] if name == "heal" else []
    planned = plan(load(name, [f"model={tiny_llama}", *short, *taught]))
    assert planned.verdict == "fits" and planned.artifacts


@pytest.mark.model
@pytest.mark.parametrize("name", bundled.names())
def test_every_one_plans_for_its_own_model(name: str) -> None:
    assert plan(load(name)).verdict == "fits"


def test_every_one_says_when_to_take_it() -> None:
    for name, said in bundled.summaries().items():
        assert bundled.read(name).startswith(b"# ") and said, name
