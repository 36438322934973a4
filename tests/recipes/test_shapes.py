"""A pass that changes shapes in mid-recipe: every later stage, the plan and the artifact follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats.base import ModelSpec
from compress.formats.files.native import save_tensors
from compress.passes.core.base import ModelPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.anatomy import Anatomy
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

KEPT = 96


class Narrow(ModelPass):
    """Keeps the first channels of every feed-forward layer."""

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        tensors = {name: replace(spec, shape=_cut_shape(name, spec.shape)) for name, spec in model.tensors.items()}
        return replace(model, config={**model.config, "intermediate_size": KEPT}, tensors=tensors)

    def model(self, run: Run, stage: Stage) -> Outcome:
        planned = self.plan(run.model.spec, run.skeleton.anatomy)
        path = stage.file("cut.safetensors")
        save_tensors(path, {name: cut for name in planned.tensors for cut in _cut(run, name)})
        run.model.overlay(path)
        run.model.become(planned)
        return Outcome()


def _cut_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if "gate_proj" in name or "up_proj" in name:
        return KEPT, shape[1]
    return (shape[0], KEPT) if "down_proj" in name else shape


def _cut(run: Run, name: str) -> Iterator[Tensor]:
    if ".mlp." in name:
        value = run.model.read(name)
        assert isinstance(value, Tensor)
        rows, columns = _cut_shape(name, tuple(value.shape))
        yield value[:rows, :columns].contiguous()


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path) -> Recipe:
    steps = [
        {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}},
        {"gptq": {"group_size": 32}},
        {"evaluate": {"data": "builtin", "samples": 2, "seq_len": 32}},
        {"export": {"dialect": "dense"}},
        {"export": {"dialect": "gguf"}},
    ]
    made = from_data({"model": str(tiny_llama), "passes": steps})
    return Recipe.model_validate({**dict(made), "passes": (Narrow(), *made.passes)})


def test_later_stages_and_the_artifact_have_the_new_shapes(recipe: Recipe, tmp_path: Path) -> None:
    planned = plan(recipe)
    report = run(recipe, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "dense", dtype=torch.float32)
    assert model.config.intermediate_size == KEPT
    assert model.model.layers[1].mlp.down_proj.weight.shape == (64, KEPT)
    assert report.metrics.kl_divergence is not None and report.metrics.kl_divergence > 0
