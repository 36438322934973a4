"""The model as a run has changed it so far: overlaid, planned over, with the settings that it was given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from compress.formats import open_checkpoint
from compress.formats.base import Origin, TensorSpec
from compress.formats.files.native import save_tensors
from compress.kernels.numbers.activations import CacheFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize
from compress.passes.core.working_model import WorkingModel

NAME = "model.layers.0.mlp.up_proj.weight"


def test_what_was_rewritten_takes_the_sources_place(tiny_llama: Path, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_llama)
    model, weight, number_format = WorkingModel(source), source.read(NAME), IntFormat(4, 32)
    assert isinstance(weight, torch.Tensor)
    save_tensors(tmp_path / "a", {NAME: quantize(weight, number_format, number_format.fit(weight))})
    model.overlay(tmp_path / "a")
    assert model.rewritten == {NAME}
    assert isinstance(model.read(NAME), QTensor) and model.spec.tensors[NAME].format == number_format
    assert model.spec.tensors[NAME].dtype == source.spec.tensors[NAME].dtype
    other = "model.norm.weight"
    assert torch.equal(model.read(other), source.read(other))  # type: ignore[arg-type]
    save_tensors(tmp_path / "b", {NAME: weight[:8], "extra": torch.ones(2)})
    model.overlay(tmp_path / "b")
    assert model.spec.tensors[NAME].shape == (8, 64) and model.spec.tensors["extra"].shape == (2,)


def test_it_becomes_what_was_planned(tiny_llama: Path) -> None:
    source = open_checkpoint(tiny_llama)
    model = WorkingModel(source)
    left = {name: spec for name, spec in source.spec.tensors.items() if name != NAME}
    planned = replace(
        source.spec,
        tensors={**left, "not.yet": TensorSpec((1,), "float32")},
        config={**source.spec.config, "hidden_act": "relu"},
        kv_cache=CacheFormat("fp8"),
    )
    model.become(planned)
    assert set(model.spec.tensors) == set(left)  # what did not come with an overlay is not there
    assert model.spec.kv_cache == CacheFormat("fp8")
    written = json.loads(model.files()["config.json"])
    before = json.loads(source.files()["config.json"])
    assert written == {**before, "hidden_act": "relu"}


def test_unchanged_files_are_the_sources_bytes(tiny_llama: Path) -> None:
    source = open_checkpoint(tiny_llama)
    assert dict(WorkingModel(source).files()) == dict(source.files())


def test_renamed_twice_a_tensor_is_still_itself(tmp_path: Path, tiny_llama: Path) -> None:
    """One that was rewritten before, and one of the source; what lies within another is told apart by its origin."""
    source = open_checkpoint(tiny_llama)
    model = WorkingModel(source)
    save_tensors(tmp_path / "a", {NAME: torch.ones(3, 64)})
    model.overlay(tmp_path / "a")
    other, norm = NAME.replace("up", "down"), "model.norm.weight"
    inside = Origin("model.layers.0.mlp.all", 1)
    model.spec = replace(model.spec, tensors={**model.spec.tensors, other: TensorSpec((2, 2), "float32", None, inside)})
    first = {"model.layers.4.mlp.up_proj.weight": NAME, "model.layers.4.mlp.down_proj.weight": other, norm: norm}
    model.rename(first)
    model.rename({name.replace("4", "12"): name for name in first})
    frozen = model.frozen()
    model.rename({norm: norm})
    assert set(model.spec.tensors) == {norm}
    names = {name.replace("4", "12") for name in first}
    assert set(frozen.spec.tensors) == names and frozen.rewritten == names - {norm}
    assert torch.equal(frozen.read("model.layers.12.mlp.up_proj.weight"), torch.ones(3, 64))  # type: ignore[arg-type]
    moved = frozen.read("model.layers.12.mlp.down_proj.weight")
    assert torch.equal(moved, source.read(other))  # type: ignore[arg-type]
    assert frozen.spec.tensors["model.layers.12.mlp.down_proj.weight"].origin == Origin("model.layers.12.mlp.all", 1)
