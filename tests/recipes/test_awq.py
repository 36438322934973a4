"""AWQ in a recipe: two passes on one weight where the first prepares it, and its artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.awq.dialect import AWQ
from compress.formats.bitsandbytes.dialect import BitsAndBytes
from compress.formats.errors import RefusedError
from compress.passes.model.whole.loading import load_model
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

GRID: dict[str, Any] = {"group_size": 32, "symmetric": False}


def recipe(model: Path, corpus: Path, *steps: dict[str, Any]) -> Recipe:
    calibrate = {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}}
    return from_data({"model": str(model), "passes": [calibrate, *steps]})


def test_gptq_may_follow_awq_on_the_same_weights(tiny_llama: Path, corpus: Path) -> None:
    planned = plan(recipe(tiny_llama, corpus, {"awq": GRID}, {"gptq": GRID}, {"export": {"dialect": "awq"}}))
    assert [stage.passes for stage in planned.stages] == [["calibrate"], ["awq", "gptq"], ["export"]]


@pytest.mark.parametrize(
    "steps",
    [
        [{"gptq": GRID}, {"awq": GRID}],
        [{"awq": GRID}, {"gptq": GRID}, {"rtn": GRID}],
        [{"awq": GRID}, {"calibrate": {}}, {"gptq": GRID}],
    ],
)
def test_nothing_else_may_quantize_twice(tiny_llama: Path, corpus: Path, steps: list[dict[str, Any]]) -> None:
    with pytest.raises(RefusedError, match="was quantized by an earlier pass"):
        plan(recipe(tiny_llama, corpus, *steps, {"export": {"dialect": "dense", "requantize": True}}))


def test_the_artifact_is_the_folded_model(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    report = run(recipe(tiny_llama, corpus, {"awq": GRID}, {"gptq": GRID}, {"export": {"dialect": "awq"}}), tmp_path)
    path = Path(report.artifacts[0].path)
    manifest = json.loads((path / "compress.json").read_bytes())
    assert manifest["tensors"]["model.layers.1.mlp.down_proj"]["fold"] == "model.layers.1.mlp.up_proj"
    artifact = open_checkpoint(path)
    norm, source = "model.layers.0.input_layernorm.weight", open_checkpoint(tiny_llama)
    assert not torch.equal(artifact.read(norm).float(), source.read(norm).float())  # type: ignore[union-attr]
    witness = AWQ.witness(path)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokens = torch.arange(32).unsqueeze(0)
    with torch.no_grad():
        before = model(tokens).logits
        model.load_state_dict({name: witness(name) for name in artifact.spec.tensors}, strict=False)
        after = model(tokens).logits
        ours = load_model(artifact, torch.device("cpu"))(tokens).logits
    assert torch.allclose(ours, after, atol=1e-4)
    assert float((after - before).norm() / before.norm()) < 0.5


def test_awq_goes_onto_a_table_of_bitsandbytes(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    grid = {"format": "nf4", "block_size": 32}
    report = run(recipe(tiny_llama, corpus, {"awq": grid}, {"export": {"dialect": "bitsandbytes"}}), tmp_path)
    path = Path(report.artifacts[0].path)
    folds = {name: said["fold"] for name, said in json.loads((path / "compress.json").read_bytes())["tensors"].items()}
    assert folds["model.layers.1.mlp.down_proj"] == "model.layers.1.mlp.up_proj"
    witness, names = BitsAndBytes.witness(path), [f"{name}.weight" for name in folds]
    model = load_model(open_checkpoint(path), torch.device("cpu"))
    assert all(torch.equal(model.state_dict()[name], witness(name)) for name in names)
