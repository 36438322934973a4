"""The recipes that come with us: what a new user writes down first loads wherever it claims to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.formats import dialects
from compress.recipes import bundled
from compress.recipes.plan import plan
from compress.recipes.recipe import load

SMALL = ("calibrate.seq_len=64", "calibrate.samples=4", "evaluate.seq_len=64", "evaluate.samples=2")


def test_every_bundled_recipe_is_found_by_its_name() -> None:
    for name in bundled.names():
        assert b"passes:" in bundled.read(name)


def test_what_the_starter_writes_loads_in_every_engine_of_its_containers(tmp_path: Path, make_model: Any) -> None:
    model = make_model(tmp_path / "model", "llama")
    planned = plan(load("starter", [f"model={model}", *SMALL]))
    assert len(planned.artifacts) > 1
    for artifact in planned.artifacts:
        found = {verdict.target: verdict.reason for verdict in artifact.targets}
        claimed = dialects()[artifact.dialect].loads
        assert {engine: found[engine] for engine in claimed} == dict.fromkeys(claimed, "")


def test_the_starter_shows_what_may_differ_from_module_to_module(tmp_path: Path, make_model: Any) -> None:
    """The choice that stands in its comment is one that a recipe can make."""
    line = next(line for line in bundled.read("starter").decode().splitlines() if "# or [" in line)
    value = line.partition("# or ")[2]
    model = make_model(tmp_path / "model", "llama")
    plain, mixed = (
        plan(load("starter", [f"model={model}", *SMALL, *change])) for change in ([], [f"gptq.bits={value}"])
    )
    assert [artifact.bits_per_weight for artifact in mixed.artifacts] > [
        artifact.bits_per_weight for artifact in plain.artifacts
    ]
    (told,) = (found.reason for found in mixed.artifacts[0].targets if found.target == "transformers")
    assert "one is known for all" in told
