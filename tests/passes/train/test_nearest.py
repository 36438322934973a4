"""Weights to begin with: the nearest codes on searched scales, one scale where engines want one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.passes.core.run import Run
from compress.passes.model.weights import decoded
from compress.passes.train.nearest import Nearest, round_to_nearest

ATTENTION = "model.layers.1.self_attn"


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> Run:
    return begin(tiny_llama, tmp_path / "run")


def test_scales_are_those_of_the_least_error(run: Run) -> None:
    options = Nearest(bits=3, group_size=32)
    (name,) = found = round_to_nearest(run, options, [f"{ATTENTION}.o_proj"])
    weight = decoded(run.model.read(name))
    expected = IntFormat(3, 32).search(weight, torch.ones(64))
    assert name == f"{ATTENTION}.o_proj.weight" and torch.equal(found[name].codes, expected.codes)
    assert torch.equal(found[name].params["scale"], expected.params["scale"])


def test_linears_that_share_an_input_share_the_scale_of_a_tensor(run: Run) -> None:
    names = [f"{ATTENTION}.{part}_proj" for part in "qkv"]
    found = round_to_nearest(run, Nearest(format="nvfp4"), names)
    assert {tensor.format for tensor in found.values()} == {Float4Format("nvfp4")} and len(found) == 3
    assert len({float(scale) for tensor in found.values() for scale in tensor.params["tensor_scale"].flatten()}) == 1
    rows = {name: tensor.shape[0] for name, tensor in found.items()}
    assert rows == {f"{name}.weight": run.model.spec.tensors[f"{name}.weight"].shape[0] for name in names}


def test_ends_are_rounded_if_they_are_asked_for_and_nothing_else(run: Run) -> None:
    assert round_to_nearest(run, Nearest(), []) == {}
    assert list(round_to_nearest(run, Nearest(group_size=32), ["model.embed_tokens"])) == ["model.embed_tokens.weight"]
