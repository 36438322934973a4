"""Experts one by one give what transformers' stacks give, and say where the files keep them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.passes.model.blank import fitted
from compress.passes.model.experts import (
    LinearExperts,
    WeighedExperts,
    abreast,
    beside_experts,
    count_parts,
    is_experts,
    unknown_stacks,
)
from compress.passes.model.whole.loading import load_model


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "mixtral"])
def test_each_token_goes_through_its_experts(family: str, make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / family, family)
    view, blank = fitted(open_checkpoint(path))
    ours = load_model(view, torch.device("cpu"), blank=blank)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ((name, stack), *_) = [(name, module) for name, module in theirs.named_modules() if is_experts(module)]
    count = len(ours.get_submodule(name))
    hidden = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 1], [1, count - 1], [0, count - 1], [1, 0], [0, 1], [1, 0], [count - 1, 0]])
    weights = torch.rand(7, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = ours.get_submodule(name)(hidden, index, weights), stack(hidden, index, weights)
        abreast(ours, (), 3)  # their number is no multiple of it
        assert torch.equal(ours.get_submodule(name)(hidden, index, weights), found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_experts_that_stand_abreast_are_met_before_any_computes(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Two of them at a time, and the last one alone."""
    _, blank = fitted(open_checkpoint(make_model(tmp_path / "moe", "mixtral")))
    (experts, *_) = (module for module in blank.modules() if isinstance(module, LinearExperts))
    some = nn.ModuleDict({"q": nn.Linear(2, 2), "experts": experts})
    ups, downs = ([f"experts.{number}.{product}" for number in range(3)] for product in ("gate_up_proj.0", "down_proj"))
    firsts = ["q", *(place for pair in zip(ups, downs) for place in pair)]
    assert abreast(some, firsts, 1) == [[at] for at in range(7)]
    assert abreast(some, firsts, 2) == [[0], [1, 3], [2, 4], [5], [6]]
    assert experts.abreast == 2


def test_routers_stand_beside_experts_and_other_linears_do_not(make_model: Callable[..., Path], tmp_path: Path) -> None:
    _, blank = fitted(open_checkpoint(make_model(tmp_path / "moe", "qwen2_moe")))
    layer = blank.model.layers[0]
    assert beside_experts(layer, "mlp.shared_expert_gate")
    assert not beside_experts(layer, "self_attn.q_proj") and not beside_experts(layer, "mlp.shared_expert.up_proj")
    assert unknown_stacks(layer) == []


def test_stacks_of_an_unknown_form_are_found() -> None:
    layer = torch.nn.Module()
    layer.experts = torch.nn.Module()
    layer.experts.down_proj = torch.nn.Parameter(torch.zeros(4, 8, 8))
    assert unknown_stacks(layer) == ["experts.down_proj"] and not is_experts(layer.experts)


def test_experts_of_llama_4_get_all_tokens_weighed(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = make_model(tmp_path / "llama4", "llama4_text")
    view, blank = fitted(open_checkpoint(path))
    ours = load_model(view, torch.device("cpu"), blank=blank)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    experts = ours.get_submodule("model.layers.0.feed_forward.experts")
    assert isinstance(experts, WeighedExperts) and unknown_stacks(ours.model.layers[0]) == []
    inputs: list[int] = []
    for expert in experts:
        expert.down_proj.register_forward_pre_hook(lambda _, given: inputs.append(len(given[0])))
    tokens = torch.arange(1, 31).view(2, 15)  # not 0: it pads, and nothing goes through the experts
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    assert len(inputs) == 4 and sum(inputs) == 30  # each token went through its one expert


def test_parts_are_counted_by_the_names_of_the_files() -> None:
    stored = {"e.0.up.0.weight": "w1", "e.0.up.1.weight": "w3", "e.0.down.weight": "x"}
    assert (count_parts("e.0.up", stored), count_parts("e.0.down", stored)) == (2, 0)


def test_a_copy_keeps_its_rules(make_model: Callable[..., Path], tmp_path: Path) -> None:
    _, blank = fitted(open_checkpoint(make_model(tmp_path / "moe", "mixtral")))
    (experts, *_) = (module for module in blank.modules() if isinstance(module, LinearExperts))
    assert copy.deepcopy(experts).origins("e", {}).keys() == experts.origins("e", {}).keys()
    origin = experts.origins("e", {"e.down_proj": "files.down"})["e.3.down_proj.weight"]
    assert (origin.name, origin.index, origin.transposed) == ("files.down", 3, False)
