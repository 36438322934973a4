"""transformers' model without weights: every linear layer of it an `nn.Linear`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.passes.model.blank import Transposed, empty_model, fitted
from compress.passes.model.experts import LinearExperts
from compress.passes.model.skeleton import Skeleton

MakeModel = Callable[..., Path]


def test_every_parameter_waits_for_its_weight_and_buffers_are_real(make_model: MakeModel, tmp_path: Path) -> None:
    _, model = fitted(open_checkpoint(make_model(tmp_path / "a", "llama")))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_a_conv1d_becomes_a_linear_and_its_weight_is_turned(make_model: MakeModel, tmp_path: Path) -> None:
    files = open_checkpoint(make_model(tmp_path / "a", "gpt2"))
    view, model = fitted(files)
    name = "transformer.h.1.mlp.c_fc"
    assert isinstance(model.get_submodule(name), Transposed)
    stored, seen = files.read(f"{name}.weight"), view.read(f"{name}.weight")
    assert isinstance(stored, Tensor) and isinstance(seen, Tensor) and torch.equal(stored.T, seen)
    assert seen.shape == model.get_parameter(f"{name}.weight").shape == (256, 64)


@pytest.mark.parametrize(("family", "count"), [("gpt_oss", 4), ("granitemoe", 4), ("qwen3_moe", 8)])
def test_experts_become_linears_and_their_stacks_are_cut(
    family: str, count: int, make_model: MakeModel, tmp_path: Path
) -> None:
    view, model = fitted(open_checkpoint(make_model(tmp_path / family, family)))
    (first, *_) = (module for module in model.modules() if isinstance(module, LinearExperts))
    assert len(first) == count
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".experts." in name]
    assert linears
    _, skeleton = Skeleton.open(open_checkpoint(tmp_path / family), torch.device("cpu"))
    for name in skeleton.anatomy.linears:
        assert len(view.spec.tensors[f"{name}.weight"].shape) == 2
    assert skeleton.matrices(open_checkpoint(tmp_path / family)).spec.tensors == view.spec.tensors


def test_what_needs_no_other_view_is_left_as_it_is(tiny_llama: Path) -> None:
    files = open_checkpoint(tiny_llama)
    view, _ = fitted(files)
    assert view is files


def test_the_computing_type_is_that_asked_for(tiny_llama: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(tiny_llama).config
    assert {parameter.dtype for parameter in empty_model(config, (), torch.bfloat16).parameters()} == {torch.bfloat16}


def test_buffers_are_those_of_the_whole_model_and_what_is_tied_stays_so(
    every_family: str, make_model: MakeModel, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(make_model(tmp_path / "a", every_family))
    whole, blank = AutoModelForCausalLM.from_config(config), empty_model(config, ())
    found = dict(blank.named_buffers())
    assert found.keys() == dict(whole.named_buffers()).keys()
    assert all(torch.equal(found[name], buffer) for name, buffer in whole.named_buffers())
    tied = [each.get_output_embeddings().weight is each.get_input_embeddings().weight for each in (whole, blank)]
    assert tied[0] == tied[1]
