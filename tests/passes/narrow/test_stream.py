"""Which tensors have a value for each channel of the residual stream, in every family that can be made narrower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint, TensorSpec
from compress.formats.errors import RefusedError
from compress.passes.model.skeleton import Skeleton
from compress.passes.narrow.stream import find_stream, stream_width_for, thinner

Opened = Callable[[str], tuple[Checkpoint, Skeleton]]


@pytest.fixture
def opened(make_model: Callable[..., Path], tmp_path: Path) -> Opened:
    return lambda family: Skeleton.open(open_checkpoint(make_model(tmp_path / family, family)), torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "mistral", "smollm3"])
def test_narrower_headers_are_those_that_transformers_wants(opened: Opened, family: str) -> None:
    view, skeleton = opened(family)
    model, anatomy = view.spec, skeleton.anatomy
    stream = find_stream(model, anatomy)
    smaller = thinner(model, anatomy, stream, 48)
    again = skeleton.of_spec(smaller, view.path)  # it would refuse shapes that the configuration does not ask for
    assert again.width == 48 and find_stream(smaller, again.anatomy) == replace(stream, width=48)
    assert smaller.config["rms_norm_eps"] == pytest.approx(model.config["rms_norm_eps"] * 64 / 48)
    untouched = {name for name, spec in model.tensors.items() if smaller.tensors[name] == spec}
    assert all(name.endswith(("q_norm.weight", "k_norm.weight", "_proj.bias")) for name in untouched)
    part = stream_width_for(model, anatomy, stream, 0.75, 1)
    sizes = [sum(spec.size for name, spec in each.tensors.items() if ".layers." in name)
             for each in (model, thinner(model, anatomy, stream, 48))]  # fmt: skip
    assert 44 <= part <= 48 and sizes[1] == pytest.approx(0.75 * sizes[0], rel=0.02)


@pytest.mark.parametrize("family", ["gpt_neox", "starcoder2", "gemma2", "mixtral", "olmo2"])
def test_other_streams_are_refused(opened: Opened, family: str) -> None:
    view, skeleton = opened(family)
    with pytest.raises(RefusedError):
        find_stream(view.spec, skeleton.anatomy)


def test_what_the_models_code_or_we_do_not_know_is_refused(opened: Opened) -> None:
    view, skeleton = opened("llama")
    model, anatomy = view.spec, skeleton.anatomy
    with pytest.raises(RefusedError, match="hidden: 50") as refused:
        thinner(model, anatomy, find_stream(model, anatomy), 50)
    assert "multiple of 4" in str(refused.value.hint)
    more = {"model.layers.0.mlp.extra.weight": TensorSpec((64, 3), "float32")}
    with pytest.raises(RefusedError, match=r"extra\.weight has a value"):
        find_stream(replace(model, tensors={**model.tensors, **more}), anatomy)
