"""Which linears make up a feed-forward layer, in every family that has one that can be cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.skeleton import Skeleton
from compress.passes.narrow.ffn import find_ffns, layers_size, narrowed, width_for
from compress.passes.narrow.inner import Inner

Opened = Callable[[str], tuple[ModelSpec, Anatomy]]


@pytest.fixture
def opened(make_model: Callable[..., Path], tmp_path: Path) -> Opened:
    def build(family: str) -> tuple[ModelSpec, Anatomy]:
        files = open_checkpoint(make_model(tmp_path / family, family))
        model, skeleton = Skeleton.open(files, torch.device("cpu"))
        return model.spec, skeleton.anatomy

    return build


FOUND = {
    "llama": Inner(("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"), "model.layers.1.mlp.down_proj", 128),
    "gemma2": Inner(
        ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"), "model.layers.1.mlp.down_proj", 128
    ),
    "gpt_neox": Inner(("gpt_neox.layers.1.mlp.dense_h_to_4h",), "gpt_neox.layers.1.mlp.dense_4h_to_h", 128),
    "starcoder2": Inner(("model.layers.1.mlp.c_fc",), "model.layers.1.mlp.c_proj", 128),
}


@pytest.mark.parametrize("family", FOUND)
def test_what_writes_and_what_reads_is_found(opened: Opened, family: str) -> None:
    model, anatomy = opened(family)
    ffns = find_ffns(model, anatomy)
    assert len(ffns) == 2 and ffns[1] == FOUND[family]
    smaller = narrowed(model, ffns, 64)
    assert smaller.config["intermediate_size"] == 64
    changed = {name for name, spec in model.tensors.items() if smaller.tensors[name] != spec}
    assert changed == {name for ffn in ffns for name in ffn.axes(model)}
    assert find_ffns(smaller, anatomy) == tuple(replace(ffn, units=64) for ffn in ffns)


def test_biases_are_cut_with_their_rows(opened: Opened) -> None:
    model, anatomy = opened("gpt_neox")
    (_, ffn) = find_ffns(model, anatomy)
    assert dict(ffn.axes(model)) == {
        f"{ffn.writers[0]}.weight": 0,
        f"{ffn.writers[0]}.bias": 0,
        f"{ffn.reader}.weight": 1,
    }


@pytest.mark.parametrize("family", ["mixtral", "phi3", "gpt2", "qwen2_moe"])
def test_what_cannot_be_cut_is_refused(opened: Opened, family: str) -> None:
    with pytest.raises(RefusedError, match=r"feed-forward") as refused:
        find_ffns(*opened(family))
    assert "leave shrink out" in str(refused.value.hint)


def test_a_value_a_channel_of_another_kind_is_refused(opened: Opened) -> None:
    model, anatomy = opened("llama")
    norm = {"model.layers.0.mlp.norm.weight": TensorSpec((128,), "float32")}
    with pytest.raises(RefusedError, match=r"layers\.0\.mlp\.norm"):
        find_ffns(replace(model, tensors={**model.tensors, **norm}), anatomy)


@pytest.mark.parametrize("part", [0.95, 0.8, 0.65])
def test_the_width_for_a_part_is_the_largest_that_keeps_it(opened: Opened, part: float) -> None:
    model, anatomy = opened("llama")
    ffns = find_ffns(model, anatomy)

    def size(width: int) -> int:
        tensors = narrowed(model, ffns, width).tensors
        return sum(spec.size for name, spec in tensors.items() if ".layers." in name)

    assert layers_size(model, anatomy) == size(128)
    width = width_for(model, anatomy, ffns, int(part * size(128)), 8)
    assert width % 8 == 0 and size(width) <= part * size(128) < size(width + 8)
