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
from compress.passes.narrow.ffn import FFN, ascending, cut, find_ffns, narrowed, width_for, width_of

Opened = Callable[[str], tuple[ModelSpec, Anatomy]]


@pytest.fixture
def opened(make_model: Callable[..., Path], tmp_path: Path) -> Opened:
    def build(family: str) -> tuple[ModelSpec, Anatomy]:
        files = open_checkpoint(make_model(tmp_path / family, family))
        model, skeleton = Skeleton.open(files, torch.device("cpu"))
        return model.spec, skeleton.anatomy

    return build


FOUND = {
    "llama": FFN(("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"), "model.layers.1.mlp.down_proj"),
    "gemma2": FFN(("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"), "model.layers.1.mlp.down_proj"),
    "gpt_neox": FFN(("gpt_neox.layers.1.mlp.dense_h_to_4h",), "gpt_neox.layers.1.mlp.dense_4h_to_h"),
    "starcoder2": FFN(("model.layers.1.mlp.c_fc",), "model.layers.1.mlp.c_proj"),
}


@pytest.mark.parametrize("family", FOUND)
def test_what_writes_and_what_reads_is_found(opened: Opened, family: str) -> None:
    model, anatomy = opened(family)
    ffns = find_ffns(model, anatomy)
    assert len(ffns) == 2 and ffns[1] == FOUND[family] and width_of(model, ffns[1]) == 128
    smaller = narrowed(model, ffns, 64)
    assert smaller.config["intermediate_size"] == 64
    changed = {name for name, spec in model.tensors.items() if smaller.tensors[name] != spec}
    assert changed == {name for ffn in ffns for name in ffn.axes(model)}
    assert find_ffns(smaller, anatomy) == ffns


def test_biases_are_cut_with_their_rows(opened: Opened) -> None:
    model, anatomy = opened("gpt_neox")
    (_, ffn) = find_ffns(model, anatomy)
    assert dict(ffn.axes(model)) == {f"{ffn.ups[0]}.weight": 0, f"{ffn.ups[0]}.bias": 0, f"{ffn.down}.weight": 1}


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

    width = width_for(model, anatomy, ffns, part, 8)
    assert width % 8 == 0 and size(width) <= part * size(128) < size(width + 8)


def test_channels_are_cut_along_their_axis() -> None:
    tensors = {"up": torch.arange(12.0).reshape(4, 3), "down": torch.arange(8.0).reshape(2, 4)}
    kept = ascending(torch.tensor([3, 1]), 4)
    assert kept.tolist() == [0, 2]
    found = cut(tensors, {"up": 0, "down": 1}, kept)
    assert torch.equal(found["up"], tensors["up"][[0, 2]]) and torch.equal(found["down"], tensors["down"][:, [0, 2]])
