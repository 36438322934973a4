"""A model with fewer layers: which go, what the rest is called, what config.json says, and what cannot lose any."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.base import TensorSpec
from compress.formats.errors import RefusedError
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.skeleton import Skeleton
from compress.passes.narrow.layers import Influence, fewer, influences, prefixes, renumbered, strongest
from compress.passes.rtn import RTN


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2_moe", "falcon"])
def test_headers_of_what_is_left_fill_transformers_own_model(
    tmp_path: Path, make_model: Callable[..., Path], family: str
) -> None:
    """As many layers fewer, and every tensor where the model of that config.json wants it."""
    view, skeleton = Skeleton.open(
        open_checkpoint(make_model(tmp_path / "model", family, layers=3)), torch.device("cpu")
    )
    model = view.spec
    smaller = fewer(model, skeleton.anatomy, 2)
    again = skeleton.of_spec(smaller, view.path)
    assert len(again.anatomy.layers) == 2 and again.shapes.keys() == smaller.tensors.keys()
    called = renumbered(model, skeleton.anatomy, [0, 2])
    assert called.keys() == smaller.tensors.keys()
    second, third = prefixes(skeleton.anatomy)[1:]
    assert all(old == new.replace(second, third) for new, old in called.items())
    assert not any(name.startswith(second) for name in called.values())


def test_lists_with_a_value_a_layer_lose_some(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    view, skeleton = Skeleton.open(open_checkpoint(make_model(tmp_path, "llama", layers=3)), torch.device("cpu"))
    model = replace(
        view.spec, config={**view.spec.config, "layer_types": ["full_attention"] * 3, "eos_token_id": [0, 1]}
    )
    found = fewer(model, skeleton.anatomy, 1).config
    assert (found["num_hidden_layers"], found["layer_types"]) == (1, ["full_attention"])
    assert found["eos_token_id"] == [0, 1]


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "smollm3", "qwen2"])
def test_layers_that_take_turns_are_refused(tmp_path: Path, make_model: Callable[..., Path], family: str) -> None:
    """Where config.json lists them, and where it leaves that to transformers."""
    view, skeleton = Skeleton.open(open_checkpoint(make_model(tmp_path, family)), torch.device("cpu"))
    config = {**view.spec.config, "sliding_window_pattern": 2}
    for model in (view.spec, replace(view.spec, config={key: config[key] for key in config if key != "layer_types"})):
        with pytest.raises(RefusedError, match="take turns"):
            fewer(model, skeleton.anatomy, 1)


def test_layers_that_differ_and_a_number_that_is_nowhere_are_refused(tmp_path: Path, tiny_llama: Path) -> None:
    view, skeleton = Skeleton.open(open_checkpoint(tiny_llama), torch.device("cpu"))
    norm = {"model.layers.1.extra": TensorSpec((3,), "float32")}
    with pytest.raises(RefusedError, match=r"layers\.1 has other tensors"):
        fewer(replace(view.spec, tensors={**view.spec.tensors, **norm}), skeleton.anatomy, 1)
    config = {key: value for key, value in view.spec.config.items() if key != "num_hidden_layers"}
    with pytest.raises(RefusedError, match="says nowhere that there are 2 layers"):
        fewer(replace(view.spec, config={**config, "layer_types": None}), skeleton.anatomy, 1)


def test_the_strongest_stay_in_their_order() -> None:
    assert strongest([0.5, 0.1, 0.9, 0.1, 0.3], 3) == [0, 2, 4]
    assert strongest([0.5, 0.1, 0.9, 0.1, 0.3], 4) == [0, 2, 3, 4]


@pytest.fixture
def zeroed(tmp_path: Path, make_model: Callable[..., Path]) -> Path:
    """A model of three layers, whose second adds nothing."""
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "whole", "llama", layers=3), dtype=torch.float32)
    for linear in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        linear.weight.data.zero_()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_kill_costs_the_layer_at_hand(
    tmp_path: Path, zeroed: Path, begin: Callable[..., Run], killed_at: Callable[[int], AbstractContextManager[None]]
) -> None:
    def stage(name: str) -> Stage:
        return Stage((RTN(),), {}, tmp_path / name)

    run = begin(zeroed, tmp_path / "work")
    with killed_at(2):
        influences(run, stage("work"))
    assert [record.boundary for record in run.journal.of(Influence)] == [1]
    found = influences(begin(zeroed, tmp_path / "work"), stage("work"))
    assert found == influences(begin(zeroed, tmp_path / "other"), stage("other"))
    assert found[1] == pytest.approx(0, abs=1e-6) and min(found[0], found[2]) > 1e-3


def test_a_renamed_tensor_is_the_one_that_it_was(tmp_path: Path, zeroed: Path, begin: Callable[..., Run]) -> None:
    run = begin(zeroed, tmp_path / "work")
    anatomy, third = run.skeleton.anatomy, "model.layers.2.mlp.up_proj.weight"
    run.model.rename(renumbered(run.model.spec, anatomy, [0, 2]))
    run.model.become(fewer(run.source.spec, anatomy, 2))
    moved, was = run.model.read(third.replace("2", "1")), run.source.read(third)
    assert isinstance(moved, Tensor) and isinstance(was, Tensor) and torch.equal(moved, was)
    assert third not in run.model.spec.tensors
