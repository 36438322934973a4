"""The skeleton: one for all models of one shape, another where a setting or a shape differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint, TensorSpec
from compress.formats.errors import InputError
from compress.passes.core.working_model import WorkingModel
from compress.passes.model.skeleton import Skeleton, assign
from compress.passes.model.weights import dense

NAME = "model.layers.0.mlp.up_proj"
CPU = torch.device("cpu")


@pytest.fixture
def opened(tiny_llama: Path) -> tuple[Checkpoint, Skeleton]:
    return Skeleton.open(open_checkpoint(tiny_llama), CPU)


def test_a_model_of_the_same_shapes_has_the_same_skeleton(opened: tuple[Checkpoint, Skeleton]) -> None:
    model, skeleton = opened
    assert skeleton.of(WorkingModel(model)) is skeleton
    scaled = {**model.spec.tensors, f"{NAME}.input_scale": TensorSpec((1,), "float32")}
    assert skeleton.of_spec(replace(model.spec, tensors=scaled), model.path) is skeleton


def test_another_shape_or_setting_has_another(opened: tuple[Checkpoint, Skeleton]) -> None:
    model, skeleton = opened
    narrow = {
        name: replace(spec, shape=tuple(96 if extent == 128 else extent for extent in spec.shape))
        for name, spec in model.spec.tensors.items()
    }
    config = {**model.spec.config, "intermediate_size": 96}
    other = skeleton.of_spec(replace(model.spec, tensors=narrow, config=config), model.path)
    assert other is not skeleton
    assert other.anatomy.linears == skeleton.anatomy.linears and other.width == skeleton.width
    with pytest.raises(InputError, match=r"has shape \[96, 64\], config.json asks for \[128, 64\]"):
        skeleton.of_spec(replace(model.spec, tensors=narrow), model.path)


def test_a_layer_is_a_copy_filled_with_the_weights_asked_for(opened: tuple[Checkpoint, Skeleton]) -> None:
    model, skeleton = opened
    layer = skeleton.layer(0, dense(model))
    expected = model.read(f"{NAME}.weight")
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(layer.get_parameter("mlp.up_proj.weight"), expected.float())
    layer.get_parameter("mlp.up_proj.weight").zero_()
    assert torch.equal(skeleton.layer(0, dense(model)).get_parameter("mlp.up_proj.weight"), expected.float())


def test_parameters_of_a_layer_have_their_names_in_the_checkpoint(opened: tuple[Checkpoint, Skeleton]) -> None:
    model, skeleton = opened
    named = skeleton.parameters(1)
    assert named["mlp.up_proj.weight"] == "model.layers.1.mlp.up_proj.weight"
    assert set(named.values()) == {name for name in model.spec.tensors if name.startswith("model.layers.1.")}


def test_a_missing_tensor_is_named(opened: tuple[Checkpoint, Skeleton]) -> None:
    model, skeleton = opened
    tensors = {name: spec for name, spec in model.spec.tensors.items() if name != f"{NAME}.weight"}
    with pytest.raises(InputError, match=f"no tensor {NAME}.weight"):
        skeleton.of_spec(replace(model.spec, tensors=tensors), model.path)


def test_ends_are_known_by_their_own_names(make_model: Callable[..., Path], tmp_path: Path) -> None:
    for family, tied in (("llama", True), ("qwen3", False)):
        _, skeleton = Skeleton.open(open_checkpoint(make_model(tmp_path / family, family)), CPU)
        anatomy = skeleton.anatomy
        assert (anatomy.embedding, anatomy.head, anatomy.tied) == ("model.embed_tokens.weight", "lm_head.weight", tied)
        assert (skeleton.width, skeleton.vocabulary) == (64, 320)


def test_a_value_becomes_a_parameter() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    assign(module, "0.weight", torch.eye(2))
    assert torch.equal(module[0].weight, torch.eye(2)) and not module[0].weight.requires_grad
