"""Narrower feed-forward layers: shapes as planned, killed and resumed to the same bytes, read by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_after_each_commit
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats.errors import RefusedError
from compress.passes.core.run import Run
from compress.passes.model.sequences import Sequences
from compress.passes.shrink import Shrink
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

NARROW: dict[str, Any] = {"ffn": 96, "multiple": 32}


def logits(model: Path | torch.nn.Module, rows: Sequences) -> Tensor:
    """What transformers gives for `rows`."""
    if isinstance(model, Path):
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        found: Tensor = model(rows.ids, use_cache=False).logits
    return found


@pytest.fixture
def steps(corpus: Path) -> Callable[..., list[dict[str, Any]]]:
    """steps(shrink options, *after) → a recipe's passes."""

    def build(options: dict[str, Any], *after: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}}, {"shrink": options}, *after]

    return build


@pytest.fixture
def recipe(tiny_llama: Path, steps: Callable[..., list[dict[str, Any]]]) -> Callable[..., Recipe]:
    return lambda options, *after: from_data({"model": str(tiny_llama), "passes": steps(options, *after)})


EVALUATE = {"evaluate": {"data": "builtin", "samples": 4, "seq_len": 32}}
DENSE32 = {"export": {"dialect": "dense", "dtype": "float32"}}


def lost(recipe: Callable[..., Recipe], output: Path, options: dict[str, Any]) -> float:
    """The error of the first layer's outputs, as a part of their energy: that of later ones depends on it."""
    run(recipe({**NARROW, **options}, DENSE32), output)
    manifest = json.loads((output / "dense" / "compress.json").read_text())
    return float(manifest["tensors"]["model.layers.0.mlp.down_proj"]["relative_error"])


def test_the_model_is_smaller_as_planned_and_transformers_gives_our_logits(
    tmp_path: Path, recipe: Callable[..., Recipe], rows: Sequences
) -> None:
    made = recipe(NARROW, EVALUATE, DENSE32, {"export": {"dialect": "gguf", "type": "f32"}})
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    dense = tmp_path / "out" / "dense"
    assert json.loads((dense / "config.json").read_text())["intermediate_size"] == 96
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    assert [tuple(layer.mlp.down_proj.weight.shape) for layer in model.model.layers] == [(64, 96)] * 2
    assert report.metrics.kl_divergence is not None and report.metrics.kl_divergence > 0
    manifest = json.loads((dense / "compress.json").read_text())
    assert manifest["shrink"] == {"ffn": 96, "ffn_before": 128}
    assert 0 < manifest["tensors"]["model.layers.1.mlp.down_proj"]["relative_error"] < 1


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("score", ["l1", "activation", "hessian"])
def test_channels_of_no_weight_go_and_no_logit_changes(
    tmp_path: Path, tiny_llama: Path, rows: Sequences, begin: Callable[..., Run], carry_out: Callable[..., Run],
    score: str, correct: bool,
) -> None:  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    gone = torch.randperm(128, generator=torch.Generator().manual_seed(0))[:32]
    for layer in model.model.layers:
        for part, axis in ((layer.mlp.gate_proj, 0), (layer.mlp.up_proj, 0), (layer.mlp.down_proj, 1)):
            part.weight.data.index_fill_(axis, gone, 0)
    model.save_pretrained(tmp_path / "model")
    kept = [channel for channel in range(128) if channel not in gone.tolist()]
    step = Shrink(ffn=96, multiple=32, score=score, correct=correct)
    done = carry_out(begin(tmp_path / "model", tmp_path / "work"), step)
    assert done.model.spec == step.plan(done.source.spec, done.skeleton.anatomy)
    for index, layer in enumerate(model.model.layers):
        down = done.model.read(f"model.layers.{index}.mlp.down_proj.weight")
        assert isinstance(down, Tensor) and torch.equal(down, layer.mlp.down_proj.weight[:, kept])


def test_repair_and_second_order_scores_lose_less(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    bare = lost(recipe, tmp_path / "l1", {"score": "l1", "repair": False})
    repaired = lost(recipe, tmp_path / "repaired", {"score": "l1"})
    best = lost(recipe, tmp_path / "best", {})
    assert best < repaired < bare
    assert lost(recipe, tmp_path / "activation", {"score": "activation", "repair": False}) < bare


def test_the_repair_is_the_least_squares_of_what_the_layer_gave(
    tmp_path: Path, tiny_llama: Path, rows: Sequences, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> None:
    """Layer 0: its inputs by transformers, the solution by fp64 normal equations, channels told by their rows."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    down, seen = model.model.layers[0].mlp.down_proj, list[Tensor]()
    down.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).double()))
    logits(model, rows)
    done = carry_out(begin(tiny_llama, tmp_path / "work"), Shrink(ffn=96, multiple=32))
    up, whole = done.model.read("model.layers.0.mlp.up_proj.weight"), model.model.layers[0].mlp.up_proj.weight
    assert isinstance(up, Tensor)
    kept = [next(at for at in range(128) if torch.equal(row, whole[at])) for row in up]
    h = seen[0].T @ seen[0]
    h = h.diagonal().diag() + (1 - Shrink(ffn=96, multiple=32).shrinkage) * (h - h.diagonal().diag())
    ridge = 0.01 * h[kept][:, kept].diagonal().mean() * torch.eye(96, dtype=torch.float64)
    weight = down.weight.double()
    solved = torch.linalg.solve(h[kept][:, kept] + ridge, (weight @ h[:, kept] + weight[:, kept] @ ridge).T).T
    found = done.model.read("model.layers.0.mlp.down_proj.weight")
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found.double(), solved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gptq", [{}, {"correct": True, "end_loss": True}], ids=["plain", "correct"])
def test_shrink_then_gptq_is_read_by_transformers_with_our_logits(
    tmp_path: Path, recipe: Callable[..., Recipe], rows: Sequences, gptq: dict[str, Any]
) -> None:
    solve = {"gptq": {"group_size": 32, **gptq}}
    made = recipe({**NARROW, "correct": bool(gptq)}, solve, EVALUATE, {"export": {"dialect": "gptq"}}, DENSE32)
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    assert report.artifacts[0].verification  # logits of the artifact, reopened, are those in memory
    dense = logits(tmp_path / "out" / "dense", rows)
    quantized = read_by_witness(tmp_path / "out" / "gptq", tmp_path / "out" / "dense")
    torch.testing.assert_close(logits(quantized, rows), dense, rtol=5e-3, atol=5e-3)  # its scales are float16


def read_by_witness(artifact: Path, dense: Path) -> torch.nn.Module:
    """transformers' model of an artifact's own config.json, filled by the container's second reader."""
    from transformers import AutoConfig

    from compress.formats.gptq.dialect import GPTQ

    settings = AutoConfig.from_pretrained(artifact)
    assert settings.intermediate_size == 96
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    read = GPTQ.witness(artifact)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(name))
    return model


def test_shrunk_twice_and_corrected(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    second = {"shrink": {"to": 0.9, "multiple": 16, "correct": True}}
    report = run(recipe({**NARROW, "correct": True}, second, EVALUATE, DENSE32), tmp_path / "out")
    width = json.loads((tmp_path / "out" / "dense" / "config.json").read_text())["intermediate_size"]
    assert width < 96 and width % 16 == 0 and report.metrics.kl_divergence


def test_a_narrower_model_learns_from_the_one_it_was(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    """The teacher keeps its shapes."""
    learn = {"data": "builtin", "samples": 24, "seq_len": 32, "steps": 24, "batch": 4, "held_out": 4, "lr": 1e-3}
    bare = {**NARROW, "score": "l1", "repair": False}
    run(recipe(bare, {"distill": {**learn, "precision": "fp32"}}, DENSE32), tmp_path / "out")
    (trained,) = json.loads((tmp_path / "out" / "dense" / "compress.json").read_text())["training"]
    assert dict(trained["measured"])[trained["best"]] < 0.9 * dict(trained["measured"])[0]


def test_killed_after_any_commit_a_run_ends_with_the_same_bytes(
    tmp_path: Path, tiny_llama: Path, steps: Callable[..., list[dict[str, Any]]]
) -> None:
    after = [{"gptq": {"group_size": 32, "correct": True}}, {"export": {"dialect": "gptq"}}]
    passes = steps({**NARROW, "correct": True}, *after)
    assert killed_after_each_commit({"model": str(tiny_llama), "passes": passes}, tmp_path, step=2) >= 5
    killed, whole = (tmp_path / name / "gptq" / "model.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


REFUSED = {
    "no multiple": ({"ffn": 100}, "no multiple of 64", "say ffn: 128"),
    "nothing to drop": ({"ffn": 128}, "there are 128 channels", "smaller"),
    "wider": ({"ffn": 256}, "there are 128 channels", "smaller"),
    "nothing left": ({"to": 0.1}, "leaves feed-forward layers no 64 channels", "larger part"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_widths_are_refused_by_the_plan(recipe: Callable[..., Recipe], case: str) -> None:
    options, message, hint = REFUSED[case]
    with pytest.raises(RefusedError, match=message) as refused:
        plan(recipe(options, DENSE32))
    assert hint in str(refused.value.hint)


def test_what_is_quantized_is_not_cut(tiny_llama: Path, steps: Callable[..., list[dict[str, Any]]]) -> None:
    passes = [{"rtn": {}}, *steps(NARROW, DENSE32)]
    with pytest.raises(RefusedError, match="is quantized"):
        plan(from_data({"model": str(tiny_llama), "passes": passes}))


def test_a_model_that_comes_quantized_is_decoded_first(
    written_as_gptq: Path, steps: Callable[..., list[dict[str, Any]]]
) -> None:
    planned = plan(from_data({"model": str(written_as_gptq), "passes": steps(NARROW, DENSE32)}))
    assert planned.stages[1].tensors == 6


@pytest.mark.parametrize("options", [{}, {"ffn": 64, "to": 0.8}, {"ffn": 64, "correct": True, "repair": False}])
def test_options_that_say_nothing_or_too_much(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"say"):
        Shrink.model_validate(options)


def test_a_plan_counts_the_solver(recipe: Callable[..., Recipe]) -> None:
    quick, slow = (plan(recipe({**NARROW, "score": score}, DENSE32)).stages[1] for score in ("l1", "hessian"))
    assert slow.seconds > quick.seconds and slow.forwards == 1
