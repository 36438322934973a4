"""Fewer attention heads, whole groups of them, alone or with narrower feed-forward layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_after_each_commit
from shrunken import DENSE32, EVALUATE, LEARN, logits
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats.errors import RefusedError
from compress.passes.core.run import Run
from compress.passes.model.sequences import Sequences
from compress.passes.shrink import Shrink
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe
from compress.recipes.run import run

GONE = (1, 0)
"""The group of heads that each layer can do without."""


@pytest.fixture
def zeroed(tmp_path: Path, tiny_llama: Path) -> Path:
    """Two groups of two heads in each layer, one of which gives nothing."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for gone, layer in zip(GONE, model.model.layers):
        part = layer.self_attn
        for linear in (part.q_proj, part.k_proj, part.v_proj):
            linear.weight.data.unflatten(0, (2, -1))[gone] = 0
        part.o_proj.weight.data.unflatten(1, (2, -1))[:, gone] = 0
    shutil.copytree(tiny_llama, tmp_path / "zeroed")  # with the tokenizer
    model.save_pretrained(tmp_path / "zeroed")
    return tmp_path / "zeroed"


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("score", ["l1", "activation", "hessian"])
def test_heads_of_no_weight_go_and_nothing_else_changes(
    tmp_path: Path, zeroed: Path, begin: Callable[..., Run], carry_out: Callable[..., Run], score: str, correct: bool
) -> None:
    step = Shrink.model_validate({"kv_heads": 1, "score": score, "correct": correct})
    done = carry_out(begin(zeroed, tmp_path / "work"), step)
    assert done.model.spec == step.plan(done.source.spec, done.skeleton.anatomy)
    for index, gone in enumerate(GONE):
        for name, axis, size in (("q", 0, 32), ("k", 0, 16), ("v", 0, 16), ("o", 1, 32)):
            tensor = f"model.layers.{index}.self_attn.{name}_proj.weight"
            found, whole = done.model.read(tensor), done.source.read(tensor)
            assert isinstance(found, Tensor) and isinstance(whole, Tensor)
            assert torch.equal(found, whole.narrow(axis, (1 - gone) * size, size))


def test_transformers_gives_the_logits_of_the_whole_model(
    tmp_path: Path, zeroed: Path, recipe: Callable[..., Recipe], rows: Sequences
) -> None:
    made = recipe(zeroed, {"shrink": {"kv_heads": 1}}, DENSE32, {"export": {"dialect": "gguf", "type": "f32"}})
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    dense = tmp_path / "out" / "dense"
    config, told = (json.loads((dense / name).read_text()) for name in ("config.json", "compress.json"))
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 1, 16)
    assert told["shrink"] == {"kv_heads": 1, "kv_heads_before": 2}
    assert torch.equal(logits(dense, rows), logits(zeroed, rows))


def test_repair_and_second_order_scores_lose_less(
    tmp_path: Path, tiny_llama: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    def lost(name: str, **options: Any) -> float:
        done = carry_out(begin(tiny_llama, tmp_path / name), Shrink(kv_heads=1, **options))
        return float(done.left.reports["model.layers.0.self_attn.o_proj"]["relative_error"])

    bare, repaired = lost("bare", score="l1", repair=False), lost("repaired", score="l1", shrinkage=0)
    assert lost("best", shrinkage=0) <= repaired < bare


def test_heads_and_channels_then_training_and_gptq(
    tmp_path: Path, tiny_llama: Path, recipe: Callable[..., Recipe], rows: Sequences
) -> None:
    both = {"shrink": {"kv_heads": 1, "ffn": 96, "multiple": 32, "correct": True}}
    quantize = {"gptq": {"group_size": 32, "correct": True, "skip": ["k_proj", "v_proj"]}}
    steps = [both, {"distill": LEARN}, quantize, EVALUATE, {"export": {"dialect": "gptq"}}, DENSE32]
    made = recipe(tiny_llama, *steps)
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    assert report.artifacts[0].verification and report.metrics.kl_divergence
    told = json.loads((tmp_path / "out" / "dense" / "compress.json").read_text())
    assert told["shrink"] == {"kv_heads": 1, "kv_heads_before": 2, "ffn": 96, "ffn_before": 128}
    assert logits(tmp_path / "out" / "dense", rows).isfinite().all()


def test_a_part_of_the_parameters_by_heads_and_channels(
    tmp_path: Path, tiny_llama: Path, recipe: Callable[..., Recipe]
) -> None:
    """Half of the heads go at 0.5, none at 0.6; what is missing then goes from the channels."""
    for part, kept in ((0.5, 1), (0.6, 2)):
        made = recipe(tiny_llama, {"shrink": {"to": part, "axes": ["ffn", "kv_heads"], "multiple": 4}}, DENSE32)
        (artifact,) = plan(made).artifacts
        run(made, tmp_path / f"out-{kept}")
        dense = tmp_path / f"out-{kept}" / "dense"
        config = json.loads((dense / "config.json").read_text())
        assert config["num_key_value_heads"] == kept
        model, whole = (AutoModelForCausalLM.from_pretrained(path) for path in (dense, tiny_llama))
        size, before = (sum(p.numel() for p in each.model.layers.parameters()) for each in (model, whole))
        assert part * before - 4 * 3 * 64 * 2 < size <= part * before
        assert artifact.bytes == (dense / "model.safetensors").stat().st_size


def test_killed_after_any_commit_a_run_ends_with_the_same_bytes(tmp_path: Path, tiny_llama: Path, corpus: Path) -> None:
    passes = [
        {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 16}},
        {"shrink": {"kv_heads": 1, "ffn": 64, "correct": True}},
        {"gptq": {"group_size": 32, "correct": True, "skip": ["k_proj", "v_proj"]}}, {"export": {"dialect": "gptq"}},
    ]  # fmt: skip
    assert killed_after_each_commit({"model": str(tiny_llama), "passes": passes}, tmp_path, step=2) >= 5
    killed, whole = (tmp_path / name / "gptq" / "model.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("kv_heads", [2, 3])
def test_impossible_numbers_are_refused_by_the_plan(
    tiny_llama: Path, recipe: Callable[..., Recipe], kv_heads: int
) -> None:
    with pytest.raises(RefusedError, match="has 2 heads of keys and values") as refused:
        plan(recipe(tiny_llama, {"shrink": {"kv_heads": kv_heads}}, DENSE32))
    assert "smaller" in str(refused.value.hint)
