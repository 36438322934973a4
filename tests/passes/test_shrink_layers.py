"""Fewer layers: those that turn the hidden states least go, whatever else is done before and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_after_each_commit
from pydantic import ValidationError
from shrunken import DENSE32, EVALUATE, LEARN, logits
from transformers import AutoModelForCausalLM

from compress.formats.errors import RefusedError
from compress.passes.model.sequences import Sequences
from compress.passes.shrink import Shrink
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe
from compress.recipes.run import run


@pytest.fixture
def deep(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    """Five layers, of which the second and the fourth add nothing."""
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "deep", "llama", layers=5), dtype=torch.float32)
    for index in (1, 3):
        layer = model.model.layers[index]
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data.zero_()
    model.save_pretrained(tmp_path / "deep")
    return tmp_path / "deep"


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "compress.json").read_text())
    return found


@pytest.mark.parametrize("options", [{"layers": 3}, {"to": 0.7, "axes": ["layers"]}])
def test_layers_that_add_nothing_go_and_no_logit_changes(
    tmp_path: Path, deep: Path, recipe: Callable[..., Recipe], rows: Sequences, options: dict[str, Any]
) -> None:
    made = recipe(deep, {"shrink": options}, DENSE32, {"export": {"dialect": "gguf", "type": "f32"}})
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    dense = tmp_path / "out" / "dense"
    assert json.loads((dense / "config.json").read_text())["num_hidden_layers"] == 3
    assert torch.equal(logits(dense, rows), logits(deep, rows))
    told = manifest(dense)
    assert told["shrink"] == {"layers": 3, "layers_gone": [1, 3]}
    inventory = told["inventory"]
    up = "model.layers.{}.mlp.up_proj.weight"
    assert inventory[up.format(0)]["state"] == "copied"
    assert (inventory[up.format(1)]["state"], inventory[up.format(1)]["by"]) == ("rewritten", "shrink")
    assert (inventory[up.format(4)]["state"], inventory[up.format(4)]["by"]) == ("dropped", "shrink")


def test_what_comes_before_and_after_works_on_the_layers_that_are_left(
    tmp_path: Path, deep: Path, recipe: Callable[..., Recipe]
) -> None:
    """Narrower, fewer, narrower, trained, quantized; what was said of a layer that is gone is said no more."""
    steps = [
        {"shrink": {"ffn": 96, "multiple": 32}}, {"shrink": {"layers": 3}}, {"shrink": {"ffn": 64, "correct": True}},
        {"distill": LEARN}, {"gptq": {"group_size": 32, "correct": True}},
        EVALUATE,
    ]  # fmt: skip
    made = recipe(deep, *steps, {"export": {"dialect": "gptq"}}, {"export": {"dialect": "gguf", "requantize": True}})
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    assert report.metrics.kl_divergence is not None
    told = manifest(tmp_path / "out" / "gptq")
    assert told["shrink"] == {"ffn": 64, "ffn_before": 128, "layers": 3, "layers_gone": [1, 3]}
    assert {name.split(".")[2] for name in told["tensors"]} == {"0", "1", "2"}


def test_killed_after_any_commit_a_run_ends_with_the_same_bytes(tmp_path: Path, deep: Path, corpus: Path) -> None:
    """Across stages that change shapes, and names."""
    passes = [
        {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 16}},
        {"shrink": {"layers": 3}}, {"shrink": {"ffn": 64, "correct": True}},
        {"gptq": {"group_size": 32, "correct": True}}, {"export": {"dialect": "gptq"}},
    ]  # fmt: skip
    assert killed_after_each_commit({"model": str(deep), "passes": passes}, tmp_path, step=2) >= 5
    killed, whole = (tmp_path / name / "gptq" / "model.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("options", [{"layers": 5}, {"layers": 9}, {"to": 0.1, "axes": ["layers"]}])
def test_impossible_numbers_are_refused_by_the_plan(
    deep: Path, recipe: Callable[..., Recipe], options: dict[str, Any]
) -> None:
    with pytest.raises(RefusedError, match="there are 5 layers") as refused:
        plan(recipe(deep, {"shrink": options}, DENSE32))
    assert "layers: 1 to 4" in str(refused.value.hint)


@pytest.mark.parametrize(
    "options", [{"layers": 3, "to": 0.5}, {"ffn": 64, "axes": ["layers"]}, {"layers": 3, "hidden": 64, "correct": True}]
)
def test_options_that_say_too_much(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="say"):
        Shrink.model_validate(options)


def test_layers_and_what_lies_within_them_go_in_one_entry_as_they_do_in_two(
    tmp_path: Path, deep: Path, recipe: Callable[..., Recipe]
) -> None:
    within = {"ffn": 64, "multiple": 32, "correct": True}
    one, two = (
        recipe(deep, *steps, DENSE32) for steps in (
            [{"shrink": {"layers": 3, **within}}], [{"shrink": {"layers": 3, "multiple": 32}}, {"shrink": within}],
        )
    )  # fmt: skip
    assert one.passes == two.passes
    planned, report = plan(one), run(one, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    told = manifest(tmp_path / "out" / "dense")["shrink"]
    assert told == {"ffn": 64, "ffn_before": 128, "layers": 3, "layers_gone": [1, 3]}


def test_a_part_of_parameters_by_several_axes_is_as_large_a_part_by_each() -> None:
    step = Shrink(to=0.64, axes=("ffn", "layers", "kv_heads"), correct=True, shrinkage=0.2)
    assert [each for _, each in step.unfolded()] == [
        Shrink(to=0.8, axes=("layers",), shrinkage=0.2),
        Shrink(to=0.8, axes=("kv_heads", "ffn"), correct=True, shrinkage=0.2),
    ]
