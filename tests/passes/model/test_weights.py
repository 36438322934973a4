"""A model's tensors as a forward wants them: dense, fp32, and rounded where an engine rounds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compress.formats import open_checkpoint
from compress.kernels.numbers.activations import ActivationFormat, CacheFormat
from compress.passes.model.weights import Weights, cached_as, dense, round_inputs


def test_codes_are_decoded_and_all_is_fp32(tiny_llama: Path, written_as_gptq: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    stored = open_checkpoint(written_as_gptq)
    weight = dense(stored)(name)
    assert weight.dtype == torch.float32
    assert torch.equal(weight, stored.read(name).dequantize())  # type: ignore[union-attr]
    assert dense(open_checkpoint(tiny_llama))("model.norm.weight").dtype == torch.float32


def test_a_cache_of_choice_takes_the_place_of_the_models() -> None:
    weights = Weights(lambda name: torch.ones(1), kv_cache=CacheFormat("fp8", "tensor"))
    assert cached_as(None, weights) is weights
    assert cached_as("int8", weights).kv_cache == CacheFormat("int8", "token")


def test_a_static_scale_rounds_and_saturates_the_input() -> None:
    linear = nn.Linear(3, 3, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.eye(3))
    formats = {"a": ActivationFormat("int8", False, "tensor")}
    round_inputs({"a": linear, "b": nn.Linear(3, 3)}, Weights(lambda name: torch.tensor([0.5]), formats))
    assert linear(torch.tensor([[0.6, -0.1, 1000.0]])).tolist() == [[0.5, 0.0, 63.5]]


def test_gradients_pass_straight_through_the_rounding_of_inputs() -> None:
    linear = nn.Linear(3, 2, bias=False)
    round_inputs({"a": linear}, Weights(lambda name: torch.ones(1), {"a": ActivationFormat("int8", True, "token")}))
    x = torch.tensor([[0.61, -0.13, 1.0]], requires_grad=True)
    with torch.no_grad():
        expected = linear(x)
    found = linear(x)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert x.grad is not None and torch.equal(x.grad, linear.weight.detach().sum(0, keepdim=True))
