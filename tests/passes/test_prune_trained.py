"""Training of a pruned model: zeros stay zeros, what stays learns, and a killed one ends with the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned import zeros_are_where_they_should

from compress.kernels.qtensor import QTensor
from compress.passes import get
from compress.passes.prune import Prune
from compress.passes.train.commit import Trained
from compress.recipes.run import run

Build = Callable[..., Any]
GRID = {"group_size": 32}
TEXT: dict[str, Any] = {"samples": 24, "seq_len": 32, "batch": 4, "held_out": 4, "measure_every": 10}
TRAIN: dict[str, Any] = {
    **TEXT, "steps": 20, "lr": 3e-3, "lr_codes": 5e-2, "lr_scales": 3e-3, "weight_decay": 0.1, "precision": "fp32",
}  # fmt: skip
LORA: dict[str, Any] = {**TRAIN, "train": "lora", "lora": {"rank": 4}, "lr_lora": 1e-2}
TRAININGS: dict[str, list[dict[str, Any]]] = {
    "finetune": [{"finetune": TRAIN}],
    "finetune, then gptq": [{"finetune": TRAIN}, {"gptq": GRID}],
    "distill in steps of two": [{"distill": {**TRAIN, "micro_batch": 2}}],
    "distill layer by layer": [{"distill": {**TRAIN, "scope": "layer"}}],
    "lora": [{"finetune": LORA}],
    "lora of all layers computed twice": [{"distill": {**LORA, "checkpointing": True}}],
    "qat": [{"qat": {**TRAIN, **GRID, "bits": 3}}],
    "qat with zeros that are no code 0": [{"qat": {**TRAIN, **GRID, "bits": 3, "symmetric": False}}],
    "qat of nf4": [{"qat": {**TRAIN, "format": "nf4"}}],
    "qat with lora": [{"qat": {**LORA, **GRID, "bits": 4}}],
    "codes that gptq chose": [{"gptq": {**GRID, "bits": 3}}, {"distill": TRAIN}],
    "scales that gptq chose": [{"gptq": {**GRID, "bits": 3}}, {"distill": {**TRAIN, "train": "scales"}}],
    "codes and lora": [{"rtn": {**GRID, "bits": 4}}, {"distill": LORA}],
}


@pytest.mark.parametrize("which", TRAININGS)
def test_zeros_stay_in_every_training_and_what_stays_learns(
    tiny_llama: Path, corpus: Path, tmp_path: Path, begin: Build, carry_out: Build, which: str
) -> None:
    run = carry_out(begin(tiny_llama, tmp_path / "run"), Prune(pattern="2:4"))
    pruned = {name: run.model.read(f"{name}.weight") for name in run.model.spec.pruned}
    for step in TRAININGS[which]:
        ((kind, options),) = step.items()
        text = {} if kind in ("gptq", "rtn") else {"data": str(corpus)}
        carry_out(run, get(kind).model_validate({**options, **text}))
    for name, before in pruned.items():
        found = run.model.read(f"{name}.weight")
        values = found.dequantize() if isinstance(found, QTensor) else found
        gone, counts = before == 0, (values != 0).view(len(values), -1, 4).sum(2)
        assert not bool(values[gone].any()) and int(counts.max()) <= 2
        assert float((values[~gone] != before[~gone]).float().mean()) > 0.9
    (course,) = run.journal.of(Trained)[:1]
    assert course.measured[-1][0] == 20 and min(loss for _, loss in course.measured) < course.measured[0][1]


def test_what_stays_and_rounds_to_zero_learns_when_gptq_has_chosen_its_code(
    tiny_llama: Path, corpus: Path, tmp_path: Path, begin: Build, carry_out: Build
) -> None:
    """One sweep leaves codes alone; masks are found again by a process that goes on, and by a second training."""
    steps = [Prune(pattern="2:4"), get("gptq").model_validate({**GRID, "bits": 3})]
    carry_out(begin(tiny_llama, tmp_path / "run"), *steps)
    run = carry_out(begin(tiny_llama, tmp_path / "run"), *steps)
    masks = {name: run.model.kept(name) for name in run.model.spec.pruned}
    started = {name: run.model.read(f"{name}.weight").dequantize() for name in masks}
    for name, mask in masks.items():
        assert bool((mask.view(len(mask), -1, 4).sum(2) == 2).all()) and not bool(started[name][~mask].any())
    for steps_more in (20, 21):
        asleep = {name: mask & (run.model.read(f"{name}.weight").dequantize() == 0) for name, mask in masks.items()}
        carry_out(run, get("distill").model_validate({**TRAIN, "data": str(corpus), "steps": steps_more}))
        values = {name: run.model.read(f"{name}.weight").dequantize() for name in masks}
        assert not any(bool(values[name][~mask].any()) for name, mask in masks.items())
        assert sum(int((values[name][each] != 0).sum()) for name, each in asleep.items()) > 0
        assert all(torch.equal(run.model.kept(name), mask) for name, mask in masks.items())


@pytest.mark.parametrize(("training", "at"), [("finetune", 9), ("lora", 9), ("qat", 12)])
def test_a_killed_training_of_a_pruned_model_goes_on_to_the_same_bytes(
    tiny_llama: Path, recipe: Build, tmp_path: Path, corpus: Path, training: str, at: int, killed_at: Build
) -> None:
    ((kind, options),) = TRAININGS[training][0].items()
    short = {**options, "data": str(corpus), "steps": 8, "measure_every": 2}
    wanted = recipe(tiny_llama, {"prune": {"pattern": "2:4"}}, {kind: short}, {"export": {"dialect": "dense"}})
    run(wanted, tmp_path / "whole")
    with killed_at(at):
        run(wanted, tmp_path / "cut")
    assert [*(tmp_path / "cut").rglob("state-*.safetensors")]
    run(wanted, tmp_path / "cut")
    whole, cut = ((tmp_path / name / "dense" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    zeros_are_where_they_should(tmp_path / "cut" / "dense")
