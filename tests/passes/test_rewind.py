"""Rewinding: everything that was rewritten is what it was, but for the zeros of what was pruned."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.formats.errors import RefusedError
from compress.passes.core.run import Run
from compress.passes.finetune import Finetune
from compress.passes.prune import Prune
from compress.passes.rewind import Rewind
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run as run_recipe

TRAIN: dict[str, Any] = {"samples": 12, "seq_len": 32, "steps": 3, "batch": 4, "held_out": 2, "lr": 3e-3}


def dense(run: Run, name: str) -> Tensor:
    value = run.model.read(name)
    assert isinstance(value, Tensor)
    return value


def test_what_was_kept_is_what_it_was_and_all_else_is(
    tiny_llama: Path, corpus: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    run = carry_out(begin(tiny_llama, tmp_path / "run"), Prune(method="wanda", skip=("down_proj",)))
    masks = {f"{name}.weight": dense(run, f"{name}.weight") != 0 for name in run.model.spec.pruned}
    carry_out(run, Finetune(data=str(corpus), **TRAIN))
    trained = {name: dense(run, name) for name in run.model.spec.tensors}
    carry_out(run, Rewind())
    for name, learned in trained.items():
        original, found = run.source.read(name), dense(run, name)
        assert isinstance(original, Tensor) and found.dtype == original.dtype
        assert not torch.equal(learned, original)
        assert torch.equal(found, original * masks[name] if name in masks else original)
    assert len(masks) == 12 and set(run.model.spec.pruned) == {name.removesuffix(".weight") for name in masks}


def test_after_a_change_of_shapes_it_goes_back_to_what_that_left(
    tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    text = {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}}
    shrink, train = {"shrink": {"ffn": 96, "multiple": 32}}, {"finetune": {"data": str(corpus), **TRAIN}}
    out = {"export": {"dialect": "dense"}}
    written = []
    for name, steps in (("shrunk", [text, shrink, out]), ("rewound", [text, shrink, train, {"rewind": {}}, out])):
        run_recipe(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / name)
        written.append((tmp_path / name / "dense" / "model.safetensors").read_bytes())
    assert written[0] == written[1]


def test_what_was_quantized_is_refused(tiny_llama: Path) -> None:
    steps = [{"rtn": {"group_size": 32}}, {"rewind": {}}, {"export": {"dialect": "gptq"}}]
    with pytest.raises(RefusedError, match=r"rewind: .* was quantized"):
        plan(from_data({"model": str(tiny_llama), "passes": steps}))


@pytest.mark.parametrize("at", [3, 4])
def test_a_killed_run_goes_on_to_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, at: int, killed_at: Callable[[int], AbstractContextManager[None]]
) -> None:
    """Between its two units and after them: prune, without data, is begun, and has three commits."""
    steps = [{"prune": {"method": "magnitude", "solve": False}}, {"rewind": {}}]
    recipe = from_data({"model": str(tiny_llama), "passes": [*steps, {"export": {"dialect": "dense"}}]})
    run_recipe(recipe, tmp_path / "whole")
    with killed_at(4 + at):
        run_recipe(recipe, tmp_path / "cut")
    run_recipe(recipe, tmp_path / "cut")
    whole, cut = ((tmp_path / name / "dense" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
