"""A narrower residual stream, the same channels everywhere: with other steps, and as transformers reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from killed import killed_after_each_commit
from pydantic import ValidationError
from shrunken import DENSE32, EVALUATE, LEARN, logits
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats.errors import RefusedError
from compress.passes.model.sequences import Sequences
from compress.passes.shrink import Shrink
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe
from compress.recipes.run import run

NARROW = {"hidden": 48, "multiple": 16}


def emptied(source: Path, folder: Path, gone: Tensor) -> dict[str, Tensor]:
    """The model at `source` in `folder`, whose channels `gone` of the stream stay empty; its parameters."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.model.embed_tokens.weight.data[:, gone] = 0
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data[gone] = 0
    shutil.copytree(source, folder)  # with the tokenizer
    model.save_pretrained(folder)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("width", [48, 16])
def test_channels_that_are_empty_go_and_nothing_else_changes(
    tmp_path: Path, tiny_llama: Path, recipe: Callable[..., Recipe], rows: Sequences, width: int
) -> None:
    """But norms: by √(64 / width), exactly where that is a power of 2. Logits are the same to rounding."""
    kept = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:width].sort().values
    gone = torch.ones(64).index_fill(0, kept, 0).nonzero()[:, 0]
    before = emptied(tiny_llama, tmp_path / "zeroed", gone)
    made = recipe(tmp_path / "zeroed", {"shrink": {**NARROW, "hidden": width}}, DENSE32)
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    dense = tmp_path / "out" / "dense"
    config, told = (json.loads((dense / name).read_text()) for name in ("config.json", "compress.json"))
    assert (config["hidden_size"], config["head_dim"]) == (width, 16)
    assert told["shrink"] == {"hidden": width, "hidden_before": 64}
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    for name, found in model.named_parameters():
        expected = before[name]
        for axis in range(expected.ndim):
            if found.shape[axis] != expected.shape[axis]:
                expected = expected.index_select(axis, kept)
        if name.endswith("norm.weight"):
            expected = (expected.double() * (64 / width) ** 0.5).float()
        assert torch.equal(found, expected), name
    torch.testing.assert_close(logits(dense, rows), logits(tmp_path / "zeroed", rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_is_repaired_reads_more(
    tmp_path: Path, make_model: Callable[..., Path], recipe: Callable[..., Recipe], family: str
) -> None:
    """A head that is an embedding of its own (of qwen3 here) is among it."""
    model, errors = make_model(tmp_path / "model", family), []
    for repair in (False, True):
        options = {**NARROW, "score": "activation", "repair": repair, "shrinkage": 0}
        run(recipe(model, {"shrink": options}, DENSE32), tmp_path / str(repair))
        told = json.loads((tmp_path / str(repair) / "dense" / "compress.json").read_text())["tensors"]
        errors.append({name: report["relative_error"] for name, report in told.items()})
    bare, repaired = errors
    assert ("lm_head" in bare) == (family == "qwen3") and len(bare) == 10 + (family == "qwen3")
    assert all(repaired[name] < bare[name] for name in bare)


def test_narrower_in_every_way_then_taught_and_quantized(
    tmp_path: Path, tiny_llama: Path, recipe: Callable[..., Recipe]
) -> None:
    steps = [
        {"shrink": {"kv_heads": 1, "ffn": 96, "multiple": 32}}, {"shrink": {"hidden": 32, "multiple": 32}},
        {"distill": LEARN}, {"gptq": {"group_size": 32, "correct": True, "skip": ["k_proj", "v_proj"]}}, EVALUATE,
    ]  # fmt: skip
    made = recipe(tiny_llama, *steps, {"export": {"dialect": "gptq"}}, DENSE32)
    planned, report = plan(made), run(made, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    told = json.loads((tmp_path / "out" / "dense" / "compress.json").read_text())["shrink"]
    assert (told["ffn"], told["kv_heads"], told["hidden"]) == (96, 1, 32)


def test_killed_after_any_commit_a_run_ends_with_the_same_bytes(tmp_path: Path, tiny_llama: Path, corpus: Path) -> None:
    passes = [
        {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 16}}, {"shrink": {"to": 0.8, "axes": ["hidden"],
        "multiple": 16}}, {"gptq": {"group_size": 16, "correct": True}}, {"export": {"dialect": "dense"}},
    ]  # fmt: skip
    assert killed_after_each_commit({"model": str(tiny_llama), "passes": passes}, tmp_path, step=2) >= 5
    killed, whole = (tmp_path / name / "dense" / "model.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


REFUSED = {
    "no multiple": ({"hidden": 50}, "no multiple of 64", "say hidden: 64"),
    "as wide": ({"hidden": 64}, "there are 64 channels", "smaller"),
    "of no use to heads": ({"hidden": 50, "multiple": 1}, "hidden: 50", "multiple of 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_widths_are_refused_by_the_plan(tiny_llama: Path, recipe: Callable[..., Recipe], case: str) -> None:
    options, message, hint = REFUSED[case]
    with pytest.raises(RefusedError, match=message) as refused:
        plan(recipe(tiny_llama, {"shrink": options}, DENSE32))
    assert hint in str(refused.value.hint)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="say"):
        Shrink.model_validate({"hidden": 48, "correct": True})
