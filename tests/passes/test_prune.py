"""Pruning in a recipe: zeros are in every container, stay zeros in what comes after, and are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gathered import stats_of
from hessians import problem
from pruned import zeros_are_where_they_should
from told import Notes
from torch import Tensor

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.measure.error import output_energy
from compress.kernels.solve.mask import keep_share
from compress.passes.forward.statistics import Hessian
from compress.passes.gptq import GPTQ
from compress.recipes.jobs.export import export
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run

Build = Callable[..., Any]


@pytest.mark.parametrize(
    "options",
    [{}, {"symmetric": False}, {"format": "nf4"}, {"format": "nf4", "double_quant": True}, {"format": "fp8"},
     {"format": "mxfp4"}, {"format": "nvfp4"}, {"tune": True}],
    ids=str,
)  # fmt: skip
def test_gptq_keeps_zeros_and_feeds_errors_into_what_stays(options: dict[str, Any]) -> None:
    weight, hessian = problem(24, 128)
    mask = keep_share(weight.abs(), 0.5)
    values = weight * mask
    step = GPTQ.model_validate({"group_size": 32, "bits": 3, **options})
    stats = stats_of(hessian, Hessian)
    filled = step.siblings({"x": values}, stats)["x"].values
    stats.kept = {"x": mask}
    found = step.siblings({"x": values}, stats)["x"].values
    assert bool((found[~mask] == 0).all()) and bool((filled[~mask] != 0).any())
    rounded = step.siblings({"x": values}, stats_of(torch.diag(hessian.diagonal()), Hessian))["x"].values
    assert output_energy(values - found, hessian) < output_energy(values - rounded * mask, hessian)


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path) -> Build:
    """recipe(steps, exports) → a recipe on the tiny Llama."""

    def build(*steps: dict[str, Any], exports: Sequence[dict[str, Any]] = ({"dialect": "dense"},), **head: Any) -> Any:
        text = {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}}
        passes = [text, *steps, *({"export": options} for options in exports)]
        return from_data({"model": str(tiny_llama), "passes": passes, **head})

    return build


GRID = {"group_size": 32}
FUSED: dict[str, tuple[dict[str, Any], ...]] = {
    "dense": ({"dialect": "dense"}, {"dialect": "gguf"}),
    "rtn": ({"dialect": "gptq"}, {"dialect": "compressed-tensors"}),
    "gptq": ({"dialect": "gptq"}, {"dialect": "gguf"}, {"dialect": "awq"}, {"dialect": "compressed-tensors"}),
    "gptq asym": ({"dialect": "gptq"}, {"dialect": "awq"}),
    "gptq correct": ({"dialect": "gptq"},),
    "awq": ({"dialect": "awq"},),
    "awq gptq": ({"dialect": "gptq"},),
    "nf4": ({"dialect": "bitsandbytes"},),
    "int8": ({"dialect": "compressed-tensors"},),
    "fp8": ({"dialect": "compressed-tensors"},),
    "nvfp4": ({"dialect": "modelopt"},),
}
QUANTIZERS: dict[str, list[dict[str, Any]]] = {
    "dense": [],
    "rtn": [{"rtn": GRID}],
    "gptq": [{"gptq": GRID}],
    "gptq asym": [{"gptq": {**GRID, "symmetric": False}}],
    "gptq correct": [{"gptq": {**GRID, "correct": True, "tune": True}}],
    "awq": [{"awq": GRID}],
    "awq gptq": [{"awq": GRID}, {"gptq": GRID}],
    "nf4": [{"nf4": {"search": "inputs"}}],
    "int8": [{"int8": {"smooth": 0.5}}],
    "fp8": [{"fp8": {}}],
    "nvfp4": [{"nvfp4": {}}],
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_zeros_are_there_in_every_container_that_is_read_again(recipe: Build, tmp_path: Path, quantizer: str) -> None:
    exports = FUSED[quantizer]
    report = run(recipe({"prune": {"pattern": "2:4"}}, *QUANTIZERS[quantizer], exports=exports), tmp_path / "out")
    assert len(report.artifacts) == len(exports)
    for artifact in report.artifacts:
        path = Path(artifact.path)
        zeros_are_where_they_should(next(path.glob("*.gguf")) if artifact.dialect == "gguf" else path)


def test_a_later_sweep_keeps_zeros_and_an_export_of_an_artifact_does(recipe: Build, tmp_path: Path) -> None:
    look = {"evaluate": {"data": "builtin", "samples": 2, "seq_len": 32}}
    steps = [{"prune": {"pattern": "2:4"}}, look, {"gptq": GRID}]
    report = run(recipe(*steps, exports=({"dialect": "gptq"},)), tmp_path / "out")
    zeros_are_where_they_should(Path(report.artifacts[0].path))
    export(report.artifacts[0].path, "dense", {}, tmp_path / "again")
    zeros_are_where_they_should(tmp_path / "again" / "dense")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"prune": {}}, {"rtn": {**GRID, "symmetric": False, "zero": "real"}}], r"int4 g32 min has no value .* 0"),
        ([{"awq": GRID}, {"prune": {}}], "quantized by an earlier pass"),
        ([{"prune": {}}, {"shrink": {"ffn": 96, "multiple": 32}}], "what shrink repairs has no zeros"),
        ([{"prune": {}}, {"prune": {}}], r"pruned by an earlier pass \(50 %\), and its zeros stay"),
        ([{"prune": {"correct": True}}, {"prune": {"sparsity": 0.7, "correct": True}}], "twice"),
        ([{"prune": {"correct": True}}, {"gptq": {**GRID, "correct": True}}], "twice"),
    ],
)
def test_what_would_fill_zeros_or_come_too_late_is_refused(
    recipe: Build, steps: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        plan(recipe(*steps))


def test_rules_say_what_becomes_zero_of_each_layer(recipe: Build, tmp_path: Path) -> None:
    steps = [{"prune": {"sparsity": {"down_proj": 0.3, "default": 0.6}, "method": "magnitude", "solve": False}}]
    report = run(recipe(*steps), tmp_path / "out")
    checkpoint = open_checkpoint(Path(report.artifacts[0].path))
    for name in checkpoint.spec.tensors:
        if name.endswith("_proj.weight"):
            weight = checkpoint.read(name)
            assert isinstance(weight, Tensor)
            share = 0.3 if "down_proj" in name else 0.6
            assert int((weight == 0).sum()) == round(share * weight.numel())
    for rules, said in (({"nowhere": 0.3, "default": 0.6}, "no layer is named so"), ({"down_proj": 0.3}, "no rule of")):
        with pytest.raises(UsageError, match=said):
            plan(recipe({"prune": {"sparsity": rules}}))


@pytest.mark.parametrize("steps", [[], [{"gptq": GRID}]])
def test_a_pattern_is_refused_where_the_engine_gains_nothing_from_it(
    recipe: Build, steps: list[dict[str, Any]]
) -> None:
    exports = ({"dialect": "gptq" if steps else "dense"},)
    with pytest.raises(RefusedError, match="vllm gains nothing from 2:4"):
        plan(recipe({"prune": {"pattern": "2:4"}}, *steps, exports=exports, targets=["vllm"]))
    plan(recipe({"prune": {}}, *steps, exports=exports, targets=["vllm"]))


def test_what_zeros_save_is_said_in_plan_report_and_card(recipe: Build, tmp_path: Path) -> None:
    asked = recipe({"prune": {"method": "magnitude", "solve": False}})
    said = "14 linear layers are pruned (50 %): zeros take as many bytes here as other values"
    assert any(note.startswith(said) for note in plan(asked).artifacts[0].notes)
    report = run(asked, tmp_path / "out")
    assert any(said in note for note in report.notes)
    folder = Path(report.artifacts[0].path)
    assert said in (folder / "README.md").read_text()
    (written,) = json.loads((folder.parent / "compress.json").read_text())["report"]["artifacts"]
    assert written["zeros"].startswith(said)


def test_a_pattern_and_a_share_are_too_much(recipe: Build) -> None:
    with pytest.raises(UsageError, match="leave one of them out"):
        recipe({"prune": {"pattern": "2:4", "sparsity": 0.7}})


def test_correction_helps_the_model(recipe: Build, tmp_path: Path, corpus: Path) -> None:
    found = []
    for correct in (False, True):
        steps = [{"prune": {"sparsity": 0.6, "correct": correct}}]
        steps.append({"evaluate": {"data": "builtin", "samples": 8, "seq_len": 32}})
        found.append(run(recipe(*steps), tmp_path / str(correct)).metrics.kl_divergence)
    assert found[1] < found[0]


def test_a_killed_run_goes_on_to_the_same_bytes(recipe: Build, tmp_path: Path, killed_at: Build) -> None:
    wanted = recipe({"prune": {"method": "wanda"}}, {"gptq": GRID}, exports=({"dialect": "gptq"},))
    run(wanted, tmp_path / "whole")
    with killed_at(5):  # calibrate: 2, the stage: begun and one of two layers
        run(wanted, tmp_path / "killed")
    notes = Notes()
    run(wanted, tmp_path / "killed", reporter=notes)
    assert "goes on, 1 layer" in notes
    whole, killed = ((tmp_path / name / "gptq" / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
