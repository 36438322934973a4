"""Every method on a GPU as on the CPU: on a real one if there is one, and on a pretended one always."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pretended
import pytest
import torch
from apart import report, report_apart
from transformers import GPT2Config, MixtralConfig, PreTrainedConfig

from compress import passes
from compress.formats import open_checkpoint
from compress.kernels.qtensor import QTensor
from compress.recipes.run import RunReport

DEVICES = [pretended.NAME, *(["cuda"] if torch.cuda.is_available() else [])]
GROUPS = {"group_size": 32}
SAME_CODES = 0.6
"""Where errors are fed on, a code that falls the other way moves those after it; the loss is what must be the same."""
METHODS: dict[str, list[dict[str, Any]]] = {
    "rtn": [{"rtn": {**GROUPS, "search": "inputs"}}],
    "gptq": [{"gptq": GROUPS}],
    "gptq, correct and tune": [{"gptq": {**GROUPS, "correct": True, "tune": True}}],
    "gptq by the end loss": [{"gptq": {**GROUPS, "end_loss": True}}],
    "gptq onto nf4": [{"gptq": {"format": "nf4"}}],
    "awq": [{"awq": {**GROUPS, "search": False}}],
    "awq, then gptq": [{"awq": GROUPS}, {"gptq": GROUPS}],
    "int8 static": [{"int8": {"activations": "static"}}],
    "int8 smooth": [{"int8": {"smooth": 0.5}}],
    "fp8 static": [{"fp8": {"activations": "static", "search": "inputs"}}],
    "fp8 block": [{"fp8": {"per": "block"}}],
    "nf4 double": [{"nf4": {"double_quant": True, "search": "inputs"}}],
    "mxfp4": [{"mxfp4": {"search": "inputs"}}],
    "nvfp4": [{"nvfp4": {"search": "inputs"}}],
    "shrink": [{"shrink": {"ffn": 96, "multiple": 32}}],
    "shrink, corrected, then gptq": [
        {"shrink": {"to": 0.8, "multiple": 32, "score": "activation", "correct": True}},
        {"gptq": GROUPS},
    ],
    "gqa": [{"gqa": {"kv_heads": 1}}],
    "prune": [{"prune": {}}],
    "spread": [{"spread": {"sparsity": 0.5, "samples": 4}}, {"prune": {}}],
    "rewind": [{"prune": {}}, {"rewind": {}}],
    "prune, then gptq": [{"prune": {"method": "wanda", "pattern": "2:4", "correct": True}}, {"gptq": GROUPS}],
    "kv_cache": [{"rtn": GROUPS}, {"kv_cache": {"per": "head"}}],
    "imatrix": [{"imatrix": {}}, {"rtn": GROUPS}],
    "mixed": [{"mixed": {"bits": [3, 8], "average_bits": 6}}, {"gptq": GROUPS}],
}
LEARN = {"data": "builtin", "samples": 6, "seq_len": 32, "steps": 2, "batch": 2, "held_out": 2, "precision": "fp32"}
TRAINING: dict[str, list[dict[str, Any]]] = {
    "distill": [{"rtn": GROUPS}, {"distill": LEARN}],
    "distill from a file": [{"rtn": GROUPS}, {"distill": {**LEARN, "cache": {"top_k": 8}}}],
    "distill hidden states": [{"rtn": GROUPS}, {"distill": {**LEARN, "loss": "mixed"}}],
    "distill by layers": [{"rtn": GROUPS}, {"distill": {**LEARN, "scope": "layer"}}],
    "qat": [{"qat": {**GROUPS, **LEARN}}],
    "qat of gptq's codes": [{"gptq": GROUPS}, {"qat": {**GROUPS, **LEARN}}],
    "finetune": [{"finetune": LEARN}, {"rtn": GROUPS}],
    "finetune an adapter": [{"finetune": {**LEARN, "train": "lora"}}, {"rtn": GROUPS}],
}
CONTAINERS = {
    "rtn": {"dialect": "gguf"}, "gptq": {"dialect": "gptq"}, "gptq, correct and tune": {"dialect": "gptq"},
    "int8 static": {"dialect": "compressed-tensors"}, "nf4 double": {"dialect": "bitsandbytes"},
    "nvfp4": {"dialect": "modelopt"},
}  # fmt: skip
SMALL: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
Measure = Callable[..., RunReport]


@pytest.fixture
def small_llama(make_model: Callable[..., Path], tmp_path: Path) -> Path:
    """One layer: what a pretended GPU does takes fifty times as long."""
    return make_model(tmp_path / "small-llama", "llama", layers=1)


@pytest.fixture
def measure(tmp_path: Path, corpus: Path, held_out: Path) -> Measure:
    """Run steps on a device, between calibration and evaluation."""
    text = {"samples": 2, "seq_len": 16}

    def measured(source: Path, steps: list[dict[str, Any]], device: str, data: str | None = None) -> RunReport:
        recipe = [
            {"calibrate": {**text, "data": data or str(corpus)}},
            *steps,
            {"evaluate": {**text, "data": str(held_out)}},
        ]
        made, folder = {"model": str(source), "passes": recipe}, tmp_path / device
        if device != pretended.NAME:
            return (report_apart if device == "cuda" else report)(made, folder, device)
        with pretended.gpu():
            return report(made, folder, device)

    return measured


def test_every_method_is_tried() -> None:
    tried = {key for steps in (METHODS | TRAINING).values() for step in steps for key in step}
    assert tried | {"calibrate", "evaluate", "export"} == set(passes.names())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_does_on_a_gpu_what_it_does_on_the_cpu(
    small_llama: Path, measure: Measure, method: str, device: str
) -> None:
    steps = [*METHODS[method], *([{"export": CONTAINERS[method]}] if method in CONTAINERS else [])]
    mine, there = (measure(small_llama, steps, place) for place in ("cpu", device))
    assert mine.metrics.kl_divergence and there.metrics.kl_divergence
    if device == pretended.NAME:
        assert there.metrics == mine.metrics
    else:
        assert abs(there.metrics.kl_divergence / mine.metrics.kl_divergence - 1) < 0.25
        assert there.metrics.reference_perplexity == pytest.approx(mine.metrics.reference_perplexity, rel=1e-3)
    for one, other in zip(mine.artifacts, there.artifacts):
        assert agreement(Path(one.path), Path(other.path)) > (SAME_CODES if device == "cuda" else 1 - 1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", TRAINING)
def test_what_trains_does_so_on_a_gpu(small_llama: Path, measure: Measure, method: str, device: str) -> None:
    mine, there = (measure(small_llama, TRAINING[method], place) for place in ("cpu", device))
    assert mine.metrics.kl_divergence and there.metrics.kl_divergence
    assert abs(there.metrics.kl_divergence / mine.metrics.kl_divergence - 1) < (0.25 if device == "cuda" else 1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [MixtralConfig(**SMALL, num_local_experts=2), GPT2Config(**SMALL)], ids=type)
def test_other_architectures_work_on_a_gpu(
    make_model: Callable[..., Path], tmp_path: Path, measure: Measure, config: PreTrainedConfig, device: str
) -> None:
    source = make_model(tmp_path / "model", "small", config=config)
    report = measure(source, [{"awq": {**GROUPS, "search": False}}, {"gptq": {**GROUPS, "correct": True}}], device)
    assert report.metrics.kl_divergence is not None and 0 < report.metrics.kl_divergence < 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_on_a_gpu_makes_up_its_own_text(small_llama: Path, measure: Measure, device: str) -> None:
    assert measure(small_llama, [{"gptq": GROUPS}], device, data="self").metrics.kl_divergence


def agreement(one: Path, other: Path) -> float:
    """The share of codes that two artifacts have in common."""
    same = [(mine == there).float().mean() for mine, there in zip(codes(one), codes(other))]
    return float(torch.stack(same).mean())


def codes(path: Path) -> Iterator[torch.Tensor]:
    checkpoint = open_checkpoint(path)
    for name in sorted(checkpoint.spec.tensors):
        tensor = checkpoint.read(name)
        if isinstance(tensor, QTensor):
            yield tensor.codes
