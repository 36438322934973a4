"""Heads of keys become one: nothing is lost where they are turns of one another, or the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gqa_model import SIZES, llama, logits, written
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config, Qwen3Config, SmolLM3Config, StableLmConfig

from compress.kernels.solve.align import How
from compress.passes.core.run import Run
from compress.passes.gqa import GQA
from compress.passes.model.sequences import Sequences


def rotation(seed: int, size: int) -> Tensor:
    turned: Tensor = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]
    return turned


def complex_turn(seed: int, size: int, rotary: int, pairs: bool) -> Tensor:
    """[size, size]: of the first `rotary` entries the halves turn with each other; any rotation of the others."""
    turn = torch.zeros(size, size)
    turn[rotary:, rotary:] = rotation(seed, size - rotary)
    half = rotary // 2
    angles = torch.randn(half, generator=torch.Generator().manual_seed(seed)) if pairs else torch.zeros(half)
    at = torch.arange(half)
    turn[at, at] = turn[at + half, at + half] = angles.cos()
    turn[at, at + half], turn[at + half, at] = -angles.sin(), angles.sin()
    return turn


def make_alike(path: Path, turn: Callable[[int, int], Tensor] | None, group: int, size: int = 8) -> None:
    """Heads of keys and values of a model become those that are first in their group, turned if `turn` says how.

    `turn` gives the rotation of a layer's and a head's keys.
    """
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        for linear in (attention.k_proj, attention.v_proj):
            for whole in linear.parameters():
                heads = whole.data.view(-1, size, *whole.shape[1:])
                for head in range(len(heads)):
                    first = heads[head // group * group]
                    if turn is not None:
                        turned = turn(number, head) if linear is attention.k_proj else rotation(50 + head, size)
                        first = turned @ first
                    heads[head] = first
    model.save_pretrained(path)


ALIKE: dict[str, tuple[PreTrainedConfig, int, int, bool]] = {
    # configuration, size of a head, how many of its entries positions turn, whether turns survive what follows
    "halves": (llama(), 8, 8, True),
    "MHA": (llama(num_key_value_heads=8), 8, 8, True),
    "biases": (Qwen2Config(**SIZES), 8, 8, True),
    "all biases": (llama(attention_bias=True), 8, 8, True),
    "a part of a head": (
        StableLmConfig(**SIZES, use_qkv_bias=True, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        8, 4, True,
    ),
    "no positions": (SmolLM3Config(**SIZES, no_rope_layers=[0, 0]), 8, 0, True),
    "a norm": (Qwen3Config(**SIZES, head_dim=16), 16, 16, False),
}  # fmt: skip


@pytest.mark.parametrize(("how", "repair"), [("aligned", False), ("shared", True)])
@pytest.mark.parametrize("case", ALIKE)
def test_heads_that_are_turns_of_one_another_are_merged_without_loss(
    tmp_path: Path, make_model: Callable[..., Path], rows: Sequences, begin: Callable[..., Run],
    carry_out: Callable[..., Run], case: str, how: How, repair: bool,
) -> None:  # fmt: skip
    config, size, rotary, turns = ALIKE[case]
    model = make_model(tmp_path / "model", case, config=config)
    make_alike(model, lambda layer, head: complex_turn(10 * layer + head, size, rotary, turns), 2, size)
    whole = logits(model, rows)
    step = GQA(kv_heads=config.num_key_value_heads // 2, merge=how, repair=repair)
    done = carry_out(begin(model, tmp_path / "work"), step)
    assert done.model.spec == step.plan(done.source.spec, done.skeleton.anatomy)
    torch.testing.assert_close(logits(written(done, model, tmp_path / "dense"), rows), whole, rtol=1e-4, atol=1e-4)
    errors = [report["relative_error"] for report in done.left.reports.values()]
    assert len(errors) == 4 and max(map(float, errors)) < 1e-6
    if how == "aligned":
        pooled = carry_out(begin(model, tmp_path / "pooled"), step.model_copy(update={"merge": "mean"}))
        found = logits(written(pooled, model, tmp_path / "mean"), rows)
        assert (found - whole).norm() > 0.1 * whole.norm()


def test_heads_find_those_that_they_are_like(
    tmp_path: Path, make_model: Callable[..., Path], rows: Sequences, begin: Callable[..., Run],
    carry_out: Callable[..., Run],
) -> None:  # fmt: skip
    """Turns of one another are heads 0 and 2, 1 and 3: no neighbours."""
    source = make_model(tmp_path / "model", "llama", config=llama())
    make_alike(source, lambda layer, head: complex_turn(10 * layer + head, 8, 8, True), 2)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for layer in model.model.layers:
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight.data = linear.weight.unflatten(0, (4, -1))[[0, 2, 1, 3]].flatten(0, 1)
    model.save_pretrained(source)
    done = carry_out(begin(source, tmp_path / "work"), GQA(kv_heads=2, repair=False))
    found = logits(written(done, source, tmp_path / "dense"), rows)
    torch.testing.assert_close(found, logits(source, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["mean", "aligned", "shared"])
def test_heads_that_are_the_same_keep_every_bit(
    tmp_path: Path, make_model: Callable[..., Path], begin: Callable[..., Run], carry_out: Callable[..., Run], how: How
) -> None:
    model = make_model(tmp_path / "model", "MHA", config=llama(num_key_value_heads=8, attention_bias=True))
    make_alike(model, None, 4)
    done = carry_out(begin(model, tmp_path / "work"), GQA(kv_heads=2, merge=how, repair=False))
    for name in done.source.spec.tensors:
        before, after = done.source.read(name), done.model.read(name)
        assert isinstance(before, Tensor) and isinstance(after, Tensor)
        if "k_proj" in name or "v_proj" in name:
            before = before.unflatten(0, (2, 4, 8))[:, 0].flatten(0, 1)
        assert torch.equal(before, after)
