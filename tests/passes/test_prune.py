"""Pruning as a pass: what becomes zero, how well what stays makes up for it, and that zeros stay zeros."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hessians import problem
from told import Notes
from torch import Tensor

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.measure.error import output_energy
from compress.kernels.qtensor import QTensor
from compress.passes import get
from compress.passes.core.journal import Journal
from compress.passes.forward.input_ranges import Moments
from compress.passes.forward.statistics import Hessian, LinearStats, Statistic
from compress.passes.gptq import GPTQ
from compress.passes.prune import Prune
from compress.passes.train.commit import Trained
from compress.recipes.jobs.export import export
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run

ALONE = {"solve": False}
METHODS = ["magnitude", "wanda", "sparsegpt", "obd", "alps"]
Build = Callable[..., Any]


def stats_of(hessian: Tensor, *kinds: type[Statistic]) -> LinearStats:
    """Statistics as if inputs with this Hessian had been gathered."""
    stats = LinearStats(frozenset(kinds), len(hessian), torch.device("cpu"))
    for kind in kinds:
        stats[kind].tokens = 600
    if Hessian in stats:
        stats[Hessian].matrix.copy_(hessian)
    if Moments in stats:
        stats[Moments].energy.copy_(hessian.diagonal())
    return stats


def pruned(weight: Tensor, hessian: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    step = Prune(**options)
    change = step.siblings({"x": weight}, stats_of(hessian, *step.needs()))["x"]
    assert change.mask is not None
    return change.values, change.mask


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"sparsity": 0.7}, {"pattern": "2:4"}, {"pattern": "4:8"}])
@pytest.mark.parametrize("more", [ALONE, {}, {"swap": True, "solve": False}, {"swap": True}])
def test_as_many_weights_stay_as_are_asked_for(method: str, options: dict[str, Any], more: dict[str, Any]) -> None:
    weight, hessian = problem(10, 64)
    values, mask = pruned(weight, hessian, method=method, **options, **more)
    assert bool((values[~mask] == 0).all())
    if pattern := options.get("pattern"):
        kept, group = map(int, pattern.split(":"))
        assert bool((mask.view(10, -1, group).sum(2) == kept).all())
    else:
        assert int(mask.sum()) == 640 - round(640 * 0.7) or method == "wanda"
        assert method != "wanda" or bool((mask.sum(1) == 64 - round(64 * 0.7)).all())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "obd"])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_swaps_and_least_squares_each_lower_the_error(method: str, pattern: str | None) -> None:
    weight, hessian = problem(24, 96)
    errors = []
    for more in (ALONE, {"swap": True, "solve": False}, {"swap": True}):
        values, _ = pruned(weight, hessian, method=method, pattern=pattern, **more)
        errors.append(output_energy(weight - values, hessian))
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("pattern", [None, "2:4", "4:8"])
def test_what_is_searched_for_errs_less_than_every_other_method(pattern: str | None) -> None:
    weight, hessian = problem(24, 96)
    errors = {
        name: output_energy(weight - pruned(weight, hessian, method=name, pattern=pattern)[0], hessian)
        for name in METHODS
    }
    assert errors.pop("alps") < min(errors.values())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obd"])
def test_what_stays_has_the_highest_scores_and_its_old_value(method: str) -> None:
    weight, hessian = problem(10, 64)
    values, mask = pruned(weight, hessian, method=method, **ALONE)
    assert torch.equal(values, weight * mask)
    energy = hessian.diagonal().double()
    score = {
        "magnitude": weight.double().abs(),
        "wanda": weight.double().abs() * energy.sqrt(),
        "obd": weight.double() ** 2 * energy / 2,
    }[method]
    parts = zip(score, mask) if method == "wanda" else [(score, mask)]
    assert all(part[keep].min() >= part[~keep].max() for part, keep in parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", [ALONE, {}, {"swap": True}, {"correct": True}])
def test_what_was_pruned_before_loses_more_and_gets_nothing_back(method: str, more: dict[str, Any]) -> None:
    weight, hessian = problem(10, 64)
    values, before = pruned(weight, hessian, method=method, sparsity=0.3, **more)
    step = Prune(method=method, sparsity=0.6, **more)
    stats = stats_of(hessian, *step.needs())
    stats.kept = {"x": before}
    found = step.siblings({"x": values}, stats)["x"]
    assert found.mask is not None
    assert not bool((found.mask & ~before).any()) and not bool(found.values[~found.mask].any())
    share = 10 * (64 - round(64 * 0.6)) if method == "wanda" else 640 - round(640 * 0.6)
    assert int(found.mask.sum()) == share


def test_without_inputs_it_goes_by_magnitude_and_says_so() -> None:
    weight, _ = problem(10, 64)
    for stats, unreached in ((LinearStats(frozenset({Hessian}), 64, torch.device("cpu")), True),
                             (LinearStats(frozenset(), 64, torch.device("cpu")), False)):  # fmt: skip
        change = Prune().siblings({"x": weight}, stats)["x"]
        assert (change.notes["fallback"], change.unreached) == ("magnitude", unreached)
        assert torch.equal(change.values, pruned(weight, torch.eye(64), method="magnitude", **ALONE)[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"symmetric": False}, {"format": "nf4"}, {"format": "nf4", "double_quant": True}, {"format": "fp8"},
     {"format": "mxfp4"}, {"format": "nvfp4"}, {"tune": True}],
    ids=str,
)  # fmt: skip
def test_gptq_keeps_zeros_and_feeds_errors_into_what_stays(options: dict[str, Any]) -> None:
    weight, hessian = problem(24, 128)
    values, mask = pruned(weight, hessian)
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


def zeros_are_where_they_should(path: Path, pattern: str = "2:4") -> None:
    kept, group = map(int, pattern.split(":"))
    checkpoint, seen = open_checkpoint(path), 0
    for name in checkpoint.spec.tensors:
        if name.endswith("_proj.weight"):
            tensor = checkpoint.read(name)
            values = tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()
            counts = (values != 0).view(len(values), -1, group).sum(2)
            assert int(counts.max()) <= kept, name
            assert float(counts.float().mean()) > 0.6 * kept, name  # it has not lost all
            seen += 1
    assert seen == 14


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


TEXT: dict[str, Any] = {"samples": 24, "seq_len": 32, "batch": 4, "held_out": 4, "measure_every": 25}
TRAIN: dict[str, Any] = {
    **TEXT, "steps": 100, "lr": 3e-3, "lr_codes": 5e-2, "lr_scales": 3e-3, "weight_decay": 0.1, "precision": "fp32",
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
    assert course.measured[-1][0] == 100 and min(loss for _, loss in course.measured) < course.measured[0][1]


@pytest.mark.parametrize(("training", "at"), [("finetune", 9), ("lora", 9), ("qat", 12)])
def test_a_killed_training_of_a_pruned_model_goes_on_to_the_same_bytes(
    recipe: Build, tmp_path: Path, corpus: Path, training: str, at: int, killed_at: Build
) -> None:
    ((kind, options),) = TRAININGS[training][0].items()
    short = {**options, "data": str(corpus), "steps": 8, "measure_every": 2}
    wanted = recipe({"prune": {"pattern": "2:4"}}, {kind: short})
    run(wanted, tmp_path / "whole")
    with killed_at(at):
        run(wanted, tmp_path / "cut")
    assert [*(tmp_path / "cut").rglob("state-*.safetensors")]
    run(wanted, tmp_path / "cut")
    whole, cut = ((tmp_path / name / "dense" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    zeros_are_where_they_should(tmp_path / "cut" / "dense")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"prune": {}}, {"rtn": {**GRID, "symmetric": False, "zero": "real"}}], r"int4 g32 min has no value .* 0"),
        ([{"rtn": GRID}, {"prune": {}}], "quantized by an earlier pass"),
        ([{"awq": GRID}, {"prune": {}}], "quantized by an earlier pass"),
        ([{"prune": {}}, {"shrink": {"ffn": 96, "multiple": 32}}], "what shrink repairs has no zeros"),
        ([{"prune": {}}, {"prune": {}}], r"pruned by an earlier pass \(50 %\), and its zeros stay"),
        ([{"prune": {"pattern": "2:4"}}, {"prune": {"sparsity": 0.7}}], r"an earlier pass \(2:4\)"),
        ([{"prune": {"sparsity": 0.2}}, {"prune": {"pattern": "2:4"}}], r"an earlier pass \(20 %\)"),
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


def test_a_killed_run_goes_on_to_the_same_bytes(recipe: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [{"prune": {"method": "wanda"}}, {"gptq": GRID}]
    run(recipe(*steps, exports=({"dialect": "gptq"},)), tmp_path / "whole")
    append, lines = Journal.append, 0

    def counted(self: Journal, record: Any) -> None:
        nonlocal lines
        lines += 1
        if lines == 5:  # calibrate: 2, the stage: begun and one of two layers
            raise KeyboardInterrupt
        append(self, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "append", counted)
        run(recipe(*steps, exports=({"dialect": "gptq"},)), tmp_path / "killed")
    notes = Notes()
    run(recipe(*steps, exports=({"dialect": "gptq"},)), tmp_path / "killed", reporter=notes)
    assert "goes on, 1 layer" in notes
    whole, killed = ((tmp_path / name / "gptq" / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
