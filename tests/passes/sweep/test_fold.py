"""Folding a scale into the op before: found by running the layer, and the whole model's logits prove it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3Config,
)

from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import Weights
from compress.passes.sweep.fold import Fold, Folds
from compress.passes.sweep.fold_search import UNKNOWN, find_folds

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
NORMS = {"q_proj": "input_layernorm", "gate_proj": "post_attention_layernorm"}

FAMILIES: dict[str, tuple[Callable[[], PreTrainedConfig], dict[str, str | None]]] = {
    "llama, every head its own keys": (
        lambda: LlamaConfig(**SIZES, num_key_value_heads=4),
        {**NORMS, "o_proj": "v_proj", "down_proj": "up_proj"},
    ),
    "llama, grouped queries, biases": (
        lambda: LlamaConfig(**SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True),
        {**NORMS, "o_proj": "v_proj", "down_proj": "up_proj"},
    ),
    "qwen3, norms of queries and keys": (
        lambda: Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
        {**NORMS, "o_proj": "v_proj", "down_proj": "up_proj"},
    ),
    "gemma, norms stored less one": (
        lambda: GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=8, hidden_act="gelu"),
        {**NORMS, "o_proj": "v_proj", "down_proj": "up_proj"},
    ),
    "gpt-neox, interleaved q, k, v and a gelu": (
        lambda: GPTNeoXConfig(**SIZES),
        {"query_key_value": "input_layernorm", "dense_h_to_4h": "post_attention_layernorm",
         "dense": None, "dense_4h_to_h": None},
    ),
    "falcon, attention and mlp side by side": (
        lambda: FalconConfig(**{**SIZES, "ffn_hidden_size": 48}, multi_query=True, alibi=False, bias=True),
        {"query_key_value": "input_layernorm", "dense": "query_key_value", "dense_4h_to_h": None},
    ),
    "phi3, fused": (
        lambda: Phi3Config(**SIZES, num_key_value_heads=2),
        {"qkv_proj": "input_layernorm", "o_proj": "qkv_proj",
         "gate_up_proj": "post_attention_layernorm", "down_proj": "gate_up_proj"},
    ),
    "opt, a relu between": (
        lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, activation_function="relu"),
        {"q_proj": "self_attn_layer_norm", "out_proj": "v_proj", "fc1": "final_layer_norm", "fc2": "fc1"},
    ),
}  # fmt: skip


class InMemory:
    """A random model whose norms are not all ones, its skeleton, and the folds of its first layer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        for parameter in self.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) / 4)
            else:
                parameter.mul_(8)
        self.tensors: dict[str, Tensor | QTensor] = dict(self.model.state_dict())
        specs = {name: TensorSpec(tuple(value.shape), "float32") for name, value in self.tensors.items()}
        self.skeleton = Skeleton(config, ModelSpec({}, specs), torch.device("cpu"))
        self.layer = self.skeleton.anatomy.layers[0]
        with torch.no_grad():
            filled = self.skeleton.layer(0, Weights(lambda name: self.model.state_dict()[name]))
            self.folds = Folds(self.skeleton).of(0, filled, self.tensors.__getitem__)
            self.restored = all(
                torch.equal(value, self.model.state_dict()[f"{self.layer.name}.{name}"])
                for name, value in filled.state_dict().items()
            )

    def fold_of(self, leaf: str) -> Fold | None:
        names = [name for group in self.layer.siblings for name in group if name.rpartition(".")[2] == leaf]
        return self.folds.get(names[0])

    def logits(self, changed: dict[str, Tensor] | None = None) -> Tensor:
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        with torch.no_grad():
            self.model.load_state_dict(changed or {}, strict=False)
            logits: Tensor = self.model(torch.arange(24).reshape(2, 12)).logits
            self.model.load_state_dict(kept)
        return logits

    def random_scale(self, fold: Fold) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return fold.tie(torch.rand(len(fold.found.source), generator=generator) * 4 + 0.25)


@pytest.fixture(params=sorted(FAMILIES))
def case(request: pytest.FixtureRequest) -> tuple[InMemory, dict[str, str | None]]:
    make, expected = FAMILIES[request.param]
    return InMemory(make()), expected


def test_the_op_before_each_group_is_found_and_nothing_else(case: tuple[InMemory, dict[str, str | None]]) -> None:
    model, expected = case
    assert model.restored
    found = {leaf: model.fold_of(leaf) for leaf in expected}
    assert {leaf: fold and fold.op.rpartition(".")[2] for leaf, fold in found.items()} == expected


def test_the_whole_model_says_the_same_after_every_fold(case: tuple[InMemory, dict[str, str | None]]) -> None:
    model, _ = case
    logits = model.logits()
    assert model.folds
    for fold in {fold.op: fold for fold in model.folds.values()}.values():
        scale = model.random_scale(fold)
        folded = {name: value for name, value in fold.folded(scale).items() if isinstance(value, Tensor)}
        weights = {f"{name}.weight": model.model.get_submodule(name).weight * scale for name in fold.siblings}
        assert float((model.logits({**folded, **weights}) - logits).norm() / logits.norm()) < 1e-5
        for half in (folded, weights):
            assert float((model.logits(half) - logits).norm() / logits.norm()) > 1e-4


def test_heads_that_share_values_share_a_scale() -> None:
    make, _ = FAMILIES["llama, grouped queries, biases"]
    model = InMemory(make())
    fold = model.fold_of("o_proj")
    assert fold is not None
    heads = fold.found.source.reshape(2, 2, 8)  # key/value head, query head, within the head
    assert torch.equal(heads, torch.arange(16).reshape(2, 1, 8).expand(2, 2, 8))
    scale = torch.rand(32) + 0.5
    tied = fold.tie(scale).reshape(2, 2, 8)
    assert torch.equal(tied[:, 0], tied[:, 1])
    assert torch.allclose(tied[:, 0], scale.reshape(2, 2, 8).prod(1).sqrt())


def test_only_the_rows_that_feed_the_group_are_scaled() -> None:
    make, _ = FAMILIES["phi3, fused"]
    model = InMemory(make())
    for leaf, rows in (("o_proj", range(48, 64)), ("down_proj", range(48, 96))):
        fold = model.fold_of(leaf)
        assert fold is not None and set(fold.found.source.tolist()) == set(rows)
        (name,) = fold.offsets
        before, after = model.tensors[name], fold.folded(model.random_scale(fold))[name]
        assert isinstance(before, Tensor) and isinstance(after, Tensor)
        assert torch.equal(before[: rows.start], after[: rows.start])
        assert not torch.equal(before[rows.start :], after[rows.start :])


@pytest.mark.parametrize("family", ["llama, grouped queries, biases", "gemma, norms stored less one"])
def test_a_norm_s_new_weight_is_one_that_every_container_holds(family: str) -> None:
    model = InMemory(FAMILIES[family][0]())
    fold = model.fold_of("q_proj")
    assert fold is not None
    scale = torch.rand(32) * 4 + 0.25
    tied = fold.tie(scale)
    assert float((tied / scale).log().abs().max()) < 0.05
    (new,) = fold.folded(tied).values()
    assert isinstance(new, Tensor)
    assert torch.allclose(new, new.bfloat16().float(), rtol=1e-5, atol=1e-6)


def test_a_quantized_op_is_scaled_by_its_rows_as_they_are_stored() -> None:
    model = InMemory(FAMILIES["llama, grouped queries, biases"][0]())
    fold = model.fold_of("down_proj")
    assert fold is not None
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.tensors[name]
    assert isinstance(weight, Tensor)
    number_format = IntFormat(4, 16, "integer")
    before = quantize(weight, number_format, number_format.fit(weight))
    model.tensors[name] = before
    scale = model.random_scale(fold)
    assert not fold.refusal(scale)
    after = fold.folded(scale)[name]
    assert isinstance(after, QTensor) and torch.equal(after.codes, before.codes)
    assert torch.equal(after.params["scale"], (before.params["scale"].float() * (1 / scale).unsqueeze(1)).half())
    assert torch.allclose(after.dequantize(), before.dequantize() / scale.unsqueeze(1), rtol=1e-3)
    for size, factor in ((6e-8, 0.1), (6e4, 10.0)):
        scales = {"scale": torch.full_like(before.params["scale"], size), "zero": before.params["zero"]}
        model.tensors[name] = QTensor(number_format, before.codes, scales)
        taken = QTensor(number_format, before.codes, scales).times_rows(torch.full((48,), factor))
        assert (taken is None) == (size > 1) == ("do not take" in fold.refusal(torch.full((48,), 1 / factor)))
        assert taken is None or bool(taken.params["scale"].all())


class Two(nn.Module):
    """A norm that feeds a linear and, if `leaks`, also the output by itself."""

    def __init__(self, leaks: bool, reaches: bool = True) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        self.leaks, self.reaches = leaks, reaches

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        y: Tensor = self.linear(normed) * self.reaches
        return y + normed if self.leaks else y


@pytest.mark.parametrize(("leaks", "reaches"), [(False, True), (True, True), (False, False)])
def test_an_output_that_goes_elsewhere_or_nowhere_proves_nothing(leaks: bool, reaches: bool) -> None:
    torch.manual_seed(0)
    module, x = Two(leaks, reaches).requires_grad_(False), torch.randn(1, 6, 8)
    found = find_folds(module, [["linear"]], lambda: module(x))["linear"]
    assert (found is not None) == (reaches and not leaks)


def test_inputs_that_were_always_zero_keep_the_scale_one() -> None:
    torch.manual_seed(0)
    module, x = Two(leaks=False).requires_grad_(False), torch.randn(1, 6, 8)
    module.norm.weight[3] = 0
    module.norm.bias[3] = 0
    found = find_folds(module, [["linear"]], lambda: module(x))["linear"]
    assert found is not None and found.source.tolist() == [0, 1, 2, UNKNOWN, 4, 5, 6, 7]
