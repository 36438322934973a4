"""Experts that no calibration token reaches: every pass does what can be done without data, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXT
from told import Notes
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.kernels.qtensor import QTensor, quantize
from compress.recipes.recipe import from_data
from compress.recipes.run import run

UNREACHED = "no calibration token reached it"
GPTQ8 = {"gptq": {"bits": 8, "group_size": -1}}
STATIC: dict[str, Sequence[Mapping[str, Any]]] = {
    "int8": [{"int8": {"activations": "static"}}],
    "int8 to the extremes": [{"int8": {"activations": "static", "range": "minmax"}}],
    "fp8": [{"fp8": {"activations": "static", "range": "sigma"}}],
    "fp8, smoothed": [{"fp8": {"activations": "static", "smooth": 0.5}}],
    "int8 and gptq": [{"int8": {"activations": "static", "range": "percentile"}}, GPTQ8],
}
OTHERS: dict[str, Sequence[Mapping[str, Any]]] = {
    "smooth": [{"int8": {"smooth": 0.5}}],
    "smooth and gptq": [{"int8": {"smooth": 0.5}}, GPTQ8],
    "int8 by inputs": [{"int8": {"search": "inputs"}}],
    "awq": [{"awq": {"group_size": 32}}],
    "awq and gptq": [{"awq": {"group_size": 32}}, {"gptq": {"group_size": 32, "symmetric": False}}],
    "gptq": [{"gptq": {"group_size": 32}}],
    "gptq, corrected and tuned": [{"gptq": {"group_size": 32, "correct": True, "tune": True}}],
    "rtn by inputs": [{"rtn": {"search": "inputs", "group_size": 32}}],
    "nf4 by inputs": [{"nf4": {"search": "inputs", "block_size": 32}}],
    "mixed": [{"mixed": {"average_bits": 6, "bits": [4, 8], "samples": 1}}, {"gptq": {"group_size": 32}}],
}


@dataclass(frozen=True)
class Made:
    """A model, what was made of it with three tokens, what its report says by module, and what was told."""

    source: Checkpoint
    model: Checkpoint
    path: Path
    reports: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]

    @property
    def left(self) -> set[str]:
        """The linears that no token reached."""
        return {name for name, report in self.reports.items() if report.get("reason") == UNREACHED}


@pytest.fixture(scope="module")
def experts(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("source"), "qwen3_moe")


@pytest.fixture(scope="module")
def made(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """Three tokens, two of eight experts each: some are left over in every layer. What was made before stays."""
    done: dict[str, Made] = {}
    text = tmp_path_factory.mktemp("text") / "corpus.txt"
    text.write_text("\n".join(TEXT))

    def make(steps: Sequence[Mapping[str, Any]], dialect: str) -> Made:
        key = f"{steps} {dialect}"
        if key not in done:
            done[key] = make_anew(steps, dialect)
        return done[key]

    def make_anew(steps: Sequence[Mapping[str, Any]], dialect: str) -> Made:
        source, told, out = experts, Notes(), tmp_path_factory.mktemp("out")
        calibrate = {"calibrate": {"data": str(text), "samples": 1, "seq_len": 3}}
        export = {"export": {"dialect": dialect, "dtype": "float32"}}
        run(from_data({"model": str(source), "passes": [calibrate, *steps, export]}), out, reporter=told)
        reports = json.loads((out / dialect / "compress.json").read_text())["tensors"]
        found = Made(
            open_checkpoint(source), open_checkpoint(out / dialect), out / dialect, reports, " ".join(told.said)
        )
        assert 2 * 2 * 3 <= len(found.left) < len(reports) == 2 * (4 + 8 * 3)
        assert all(".experts." in name and name in found.notes for name in found.left)
        return found

    return make


@pytest.mark.parametrize("name", STATIC)
def test_their_static_scale_is_the_largest_of_the_others(name: str, made: Callable[..., Made]) -> None:
    found = made(STATIC[name], "compressed-tensors")
    for layer in range(2):
        for product in ("gate_proj", "up_proj", "down_proj"):
            names = [f"model.layers.{layer}.mlp.experts.{expert}.{product}" for expert in range(8)]
            scales = {name: float(scale_of(found.model, name)) for name in names}
            measured = [scale for name, scale in scales.items() if name not in found.left]
            assert measured and all(scales[name] == max(measured) for name in found.left & set(names))
    assert "stands for it: model.layers.0.mlp.experts." in found.notes


def scale_of(model: Checkpoint, module: str) -> Tensor:
    scale = model.read(f"{module}.input_scale")
    assert isinstance(scale, Tensor)
    return scale


@pytest.mark.parametrize("name", OTHERS)
def test_their_weights_are_rounded_to_nearest(name: str, made: Callable[..., Made]) -> None:
    """No weight of an expert that no token reached moves by more than a coarse grid explains."""
    rounds_inputs = any("int8" in step for step in OTHERS[name])
    found = made(OTHERS[name], "compressed-tensors" if rounds_inputs else "dense")
    for module in found.left:
        weight, stored = (model.read(f"{module}.weight") for model in (found.source, found.model))
        stored = stored.dequantize() if isinstance(stored, QTensor) else stored
        assert isinstance(weight, Tensor)
        assert 0 < float((stored - weight).norm() / weight.norm()) < 0.2
        assert "left alone" in found.reports[module].get("fold", "left alone")


@pytest.mark.parametrize("correct", [False, True])
def test_gptq_rounds_them_as_rtn_does(correct: bool, made: Callable[..., Made]) -> None:
    found = made([{"gptq": {"group_size": 32, "correct": correct}}], "gptq")
    for name in found.left:
        weight, stored = found.source.read(f"{name}.weight"), found.model.read(f"{name}.weight")
        assert isinstance(weight, Tensor) and isinstance(stored, QTensor)
        assert torch.equal(stored.codes, quantize(weight, stored.format, stored.format.fit(weight)).codes)


def test_int8_keeps_their_scales_positive(made: Callable[..., Made]) -> None:
    found = made([{"int8": {"search": "inputs"}}], "compressed-tensors")
    for name in found.left:
        stored = found.model.read(f"{name}.weight")
        assert isinstance(stored, QTensor) and bool((stored.params["scale"] > 0).all())


def test_the_cache_is_measured_all_the_same(tmp_path: Path, experts: Path) -> None:
    steps = [
        {"calibrate": {"samples": 1, "seq_len": 3}},
        {"kv_cache": {}},
        {"export": {"dialect": "compressed-tensors"}},
    ]
    run(from_data({"model": str(experts), "passes": steps}), tmp_path / "out")
    model = open_checkpoint(tmp_path / "out" / "compressed-tensors")
    scale = model.read("model.layers.1.self_attn.k_scale")
    assert isinstance(scale, Tensor) and float(scale) > 0


def test_awq_leaves_the_model_close_to_what_it_was(made: Callable[..., Made]) -> None:
    found, ids = made(OTHERS["awq"], "dense"), torch.arange(1, 25).view(1, 24)
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (found.source.path, found.path)]
    with torch.no_grad():
        expected, answered = (model(ids).logits for model in models)
    assert float((answered - expected).std()) < 0.5 * float(expected.std())
