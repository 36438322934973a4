"""What a run reports: the figures of its artifacts, the gates that it missed, and the same said by the artifacts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from compress.passes.artifact.card import CARD
from compress.passes.artifact.record import MANIFEST
from compress.recipes.recipe import from_data
from compress.recipes.report import RunReport, mark, with_paths
from compress.recipes.run import run

RTN: dict[str, Any] = {"rtn": {"bits": 4, "group_size": 32}}
EXPORT: dict[str, Any] = {"export": {"dialect": "gptq"}}


@pytest.fixture
def measured(tiny_llama: Path, held_out: Path) -> dict[str, Any]:
    """A recipe that measures its result."""
    evaluate = {"evaluate": {"data": str(held_out), "samples": 2, "seq_len": 32}}
    return {"model": str(tiny_llama), "passes": [RTN, evaluate, EXPORT]}


def test_figures_are_those_of_the_files(tiny_llama: Path, tmp_path: Path) -> None:
    report = run(from_data({"model": str(tiny_llama), "passes": [RTN, EXPORT]}), tmp_path / "out")
    (artifact,) = report.artifacts
    file = tmp_path / "out" / "gptq" / "model.safetensors"
    assert artifact.bytes == file.stat().st_size
    assert artifact.bits_per_weight == 8 * artifact.bytes / report.parameters
    assert report.source_bytes == (tiny_llama / "model.safetensors").stat().st_size
    assert artifact.ends is not None
    assert (artifact.ends.bytes, artifact.ends.format) == (320 * 64 * 2, "float16")  # tied: the embedding alone
    assert report.metrics.perplexity is None and report.missed == []


def test_every_measure_of_a_recipe_stays_with_its_step(measured: dict[str, Any], tmp_path: Path) -> None:
    *steps, evaluate, export = measured["passes"]
    report = run(from_data({**measured, "passes": [evaluate, *steps, evaluate, export]}), tmp_path / "out")
    untouched, rounded = (step.metrics for step in report.passes if step.name == "evaluate")
    assert untouched and untouched.kl_divergence == 0
    assert rounded == report.metrics and rounded != untouched
    assert {step.name for step in report.passes if step.metrics is None} == {"rtn", "export"}


@pytest.mark.parametrize("gate", ["max_kl", "max_perplexity"])
def test_a_gate_is_missed_only_above_its_limit(gate: str, measured: dict[str, Any], tmp_path: Path) -> None:
    figure = {"max_kl": "kl_divergence", "max_perplexity": "perplexity"}[gate]
    value = getattr(run(from_data(measured), tmp_path / "out").metrics, figure)
    at, below = (from_data({**measured, "gates": {gate: limit}}) for limit in (value, value * 0.99))
    assert run(at, tmp_path / "out").missed == []
    assert run(below, tmp_path / "out").missed == [f"{gate}: {value:.4g} is above {value * 0.99:.4g}"]


@pytest.fixture
def reported(tiny_llama: Path, tmp_path: Path) -> RunReport:
    """The report of a run into out/, its paths relative to that."""
    report = run(from_data({"model": str(tiny_llama), "passes": [RTN, EXPORT]}), tmp_path / "out")
    artifacts = [artifact.model_copy(update={"path": Path(artifact.path).name}) for artifact in report.artifacts]
    return report.model_copy(update={"artifacts": artifacts})


def test_an_artifact_says_which_gates_it_missed_and_no_longer_once_it_misses_none(
    reported: RunReport, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "gptq"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    mark(reported.model_copy(update={"missed": ["max_kl: 1 is above 0.1"]}), tmp_path / "out")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["missed_gates"] == ["max_kl: 1 is above 0.1"]
    assert "max_kl: 1 is above 0.1" in (folder / CARD).read_text()
    assert manifest["files"][CARD] == hashlib.sha256((folder / CARD).read_bytes()).hexdigest()
    mark(reported, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_paths_are_made_for_where_the_shell_stands(reported: RunReport) -> None:
    (artifact,) = reported.artifacts
    told = artifact.model_copy(update={"loads": {"vllm": "vllm serve {path}", "x": "load('{path}') # {path}"}})
    found = with_paths(reported.model_copy(update={"artifacts": [told]}), Path("else/where")).artifacts[0]
    assert found.path == "else/where/gptq"
    assert found.loads == {"vllm": "vllm serve else/where/gptq", "x": "load('else/where/gptq') # else/where/gptq"}
