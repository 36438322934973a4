"""Fewer heads of keys: files as planned, killed and resumed to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gqa_model import llama
from killed import killed_after_each_commit
from shrunken import DENSE32, EVALUATE
from transformers import AutoModelForCausalLM

from compress.formats.errors import RefusedError
from compress.kernels.numbers.activations import CacheFormat
from compress.passes.core.run import Run
from compress.passes.gqa import GQA
from compress.passes.model.sequences import Sequences
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run


@pytest.fixture
def recipe(tmp_path: Path, make_model: Callable[..., Path], corpus: Path) -> Callable[..., Recipe]:
    """recipe(options of gqa, *after) for a model of 8 heads on 4 of keys, as wide as containers want them."""
    model = make_model(tmp_path / "model", "llama", config=llama(head_dim=32))
    calibrate = {"calibrate": {"data": str(corpus), "samples": 16, "seq_len": 32}}

    def build(options: dict[str, Any], *after: dict[str, Any], before: tuple[dict[str, Any], ...] = ()) -> Recipe:
        return from_data({"model": str(model), "passes": [calibrate, *before, {"gqa": options}, *after]})

    return build


@pytest.mark.parametrize("kept", [2, 1])
def test_the_model_is_as_planned_and_transformers_gives_our_logits(
    tmp_path: Path, recipe: Callable[..., Recipe], rows: Sequences, kept: int
) -> None:
    made = recipe({"kv_heads": kept}, EVALUATE, DENSE32, {"export": {"dialect": "gguf", "type": "f32"}})
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    dense = tmp_path / "out" / "dense"
    assert json.loads((dense / "config.json").read_text())["num_key_value_heads"] == kept
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    assert {tuple(layer.self_attn.v_proj.weight.shape) for layer in model.model.layers} == {(32 * kept, 64)}
    assert report.metrics.kl_divergence is not None and report.metrics.kl_divergence > 0
    manifest = json.loads((dense / "compress.json").read_text())
    assert manifest["gqa"] == {"kv_heads": kept, "kv_heads_before": 4}
    assert 0 < manifest["tensors"]["model.layers.1.self_attn.v_proj"]["relative_error"] < 1
    said = f"the cache takes {kept * 256:,} bytes a token in 16 bits, {kept} of 4 heads; it took 1,024"
    assert planned.stages[1].notes == [f"gqa: {said}"] and said in str(report.notes)


def test_the_cache_shrinks_by_the_ratio(tmp_path: Path, recipe: Callable[..., Recipe], rows: Sequences) -> None:
    run(recipe({"kv_heads": 1}, DENSE32), tmp_path / "out")
    taken = []
    for path in (tmp_path / "model", tmp_path / "out" / "dense"):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        layers = model(rows.ids, use_cache=True).past_key_values.layers
        taken.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) // rows.ids.numel())
    assert taken == [1024, 256]


def lost(recipe: Callable[..., Recipe], output: Path, data: Path, options: dict[str, Any]) -> float:
    """The KL divergence on text of the calibration's kind."""
    measure = {"evaluate": {"data": str(data), "samples": 16, "seq_len": 32}}
    found = run(recipe({"kv_heads": 2, **options}, measure, DENSE32), output).metrics.kl_divergence
    assert found is not None
    return found


def test_aligned_heads_lose_less_shared_ones_least_and_repair_helps(
    tmp_path: Path, recipe: Callable[..., Recipe], held_out: Path
) -> None:
    mean, aligned, shared = (
        lost(recipe, tmp_path / how, held_out, {"merge": how, "repair": False}) for how in ("mean", "aligned", "shared")
    )
    assert shared < aligned < mean
    assert lost(recipe, tmp_path / "repaired", held_out, {}) < shared


def test_every_later_pass_works_on_it(tmp_path: Path, recipe: Callable[..., Recipe], rows: Sequences) -> None:
    quantize = {"gptq": {"group_size": 32, "correct": True}}
    exports = ({"export": {"dialect": "gptq"}}, {"export": {"dialect": "gguf", "type": "q8_0"}}, DENSE32)
    again = ({"gqa": {"kv_heads": 1}}, {"shrink": {"ffn": 64, "multiple": 32}})
    cache = ({"kv_cache": {"per": "head"}}, {"export": {"dialect": "compressed-tensors"}})
    made = recipe({"kv_heads": 2}, *again, quantize, EVALUATE, *cache)
    planned, report = plan(made), run(made, tmp_path / "quantized")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    made = recipe({"kv_heads": 2}, quantize, *exports)
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    assert all(artifact.verification for artifact in report.artifacts)  # reopened, their logits are those in memory


def test_distill_heals_it(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    """The teacher keeps its heads."""
    learn = {"data": "builtin", "samples": 24, "seq_len": 32, "steps": 24, "batch": 4, "held_out": 4, "lr": 1e-3}
    run(recipe({"kv_heads": 1}, {"distill": {**learn, "precision": "fp32"}}, DENSE32), tmp_path / "out")
    (trained,) = json.loads((tmp_path / "out" / "dense" / "compress.json").read_text())["training"]
    assert dict(trained["measured"])[trained["best"]] < 0.9 * dict(trained["measured"])[0]


def test_killed_after_any_commit_a_run_ends_with_the_same_bytes(
    tmp_path: Path, make_model: Callable[..., Path], corpus: Path
) -> None:
    model = make_model(tmp_path / "model", "llama", config=llama(head_dim=32))
    passes = [
        {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}},
        {"gqa": {"kv_heads": 1}},
        {"gptq": {"group_size": 32}},
        {"export": {"dialect": "gptq"}},
    ]
    assert killed_after_each_commit({"model": str(model), "passes": passes}, tmp_path, step=2) >= 5
    killed, whole = (tmp_path / name / "gptq" / "model.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


REFUSED: dict[str, tuple[int, tuple[dict[str, Any], ...], str, str]] = {
    "does not divide": (3, (), "have 4 heads.* cannot become 3", "say kv_heads: 1 or 2"),
    "as many": (4, (), "cannot become 4", "1 or 2"),
    "more": (8, (), "cannot become 8", "1 or 2"),
    "MQA": (1, ({"gqa": {"kv_heads": 1}},), "have 1 heads", "leave gqa out"),
    "pruned": (2, ({"prune": {"sparsity": 0.5}},), "was pruned", "gqa before prune"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_the_plan(recipe: Callable[..., Recipe], case: str) -> None:
    kept, before, message, hint = REFUSED[case]
    with pytest.raises(RefusedError, match=message) as refused:
        plan(recipe({"kv_heads": kept}, DENSE32, before=before))
    assert hint in str(refused.value.hint)


def test_what_is_quantized_is_not_merged(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RefusedError, match="is quantized"):
        plan(recipe({"kv_heads": 2}, DENSE32, before=({"rtn": {}},)))


def test_a_calibrated_cache_is_not_merged(tmp_path: Path, tiny_llama: Path, begin: Callable[..., Run]) -> None:
    opened = begin(tiny_llama, tmp_path / "work")
    spec = replace(opened.source.spec, kv_cache=CacheFormat("fp8", "tensor"))
    with pytest.raises(RefusedError, match="cache was calibrated"):
        GQA(kv_heads=1).plan(spec, opened.skeleton.anatomy)


def test_keys_that_a_norm_follows_are_pooled_and_the_plan_says_so(
    tmp_path: Path, make_model: Callable[..., Path], corpus: Path
) -> None:
    model = make_model(tmp_path / "model", "qwen3")
    passes = [{"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}, {"gqa": {"kv_heads": 1}}, DENSE32]
    assert (
        "keys of 2 layers are pooled as they are"
        in plan(from_data({"model": str(model), "passes": passes})).stages[1].notes[1]
    )


def test_a_plan_counts_the_repair(recipe: Callable[..., Recipe]) -> None:
    quick, slow = (plan(recipe({"kv_heads": 1, "repair": on}, DENSE32)).stages[1] for on in (False, True))
    assert slow.seconds > quick.seconds and slow.forwards == 1
