"""The walk over headers: each stage finds the model as those before it leave it, and is told where it cannot go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from compress.formats.errors import CompressError, RefusedError, UsageError
from compress.kernels.share import ALONE
from compress.passes.core.report import Reporter
from compress.recipes.figures.pace import Pace
from compress.recipes.opening import outline_recipe
from compress.recipes.recipe import from_data
from compress.recipes.way import Way, walked

PACE = Pace(1e9, 1e9, 1e6, 1e9, lambda: 1e9)
TEXT = {"calibrate": {"samples": 4, "seq_len": 32}}
RTN = {"rtn": {"group_size": 32}}
DENSE = {"export": {"dialect": "dense", "requantize": True}}
AGAIN = {"export": {**DENSE["export"], "path": "again"}}


def way_of(model: Path, *steps: dict[str, Any]) -> Way:
    opened = outline_recipe(from_data({"model": str(model), "passes": list(steps)}), Reporter(), None)
    return walked(opened, opened.recipe.passes, sys.maxsize, PACE, ALONE)


def test_every_stage_sees_what_the_one_before_it_leaves(tiny_llama: Path) -> None:
    """The second export is of the narrower model, and is smaller."""
    shrink = {"shrink": {"ffn": 64}}
    way = way_of(
        tiny_llama, {"export": {"dialect": "dense", "path": "before", "requantize": True}}, TEXT, shrink, DENSE
    )
    (before, wide), (after, narrow) = way.products
    assert before.layout.nbytes > after.layout.nbytes
    assert wide.config["intermediate_size"] > narrow.config["intermediate_size"] == 64
    assert way.model is narrow


def test_what_lies_in_the_folder_adds_up(tiny_llama: Path) -> None:
    once, twice = (
        way_of(tiny_llama, RTN, DENSE),
        way_of(tiny_llama, RTN, DENSE, {"export": {**DENSE["export"], "path": "b"}}),
    )
    assert twice.folder - once.folder >= twice.products[-1][0].layout.nbytes
    assert twice.folder >= sum(stage.kept_bytes for stage in twice.planned)


@pytest.mark.parametrize(
    ("steps", "error", "told"),
    [
        ([{"gptq": {"group_size": 32}}, DENSE], UsageError, "needs calibration data"),
        ([RTN, {"rtn": {"group_size": 32}}, DENSE], RefusedError, "was quantized by an earlier pass"),
        ([{"export": {"dialect": "gptq"}}, RTN, DENSE], RefusedError, "export stands before rtn"),
    ],
)
def test_what_cannot_come_after_what_is_refused(
    steps: list[dict[str, Any]], error: type[CompressError], told: str, tiny_llama: Path
) -> None:
    with pytest.raises(error, match=told):
        way_of(tiny_llama, *steps)
