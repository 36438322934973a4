"""Run a recipe: plan it, take its stages in order, report. A run that was cut off goes on where it stopped."""

from __future__ import annotations

import platform
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.formats.files.storage import Lock, parse_json, read_bytes, sha256_file, write_json
from compress.passes.core.base import ModelPass
from compress.passes.core.journal import Journal
from compress.passes.core.report import Reporter
from compress.passes.core.run import Run
from compress.passes.model.config import load_config
from compress.passes.model.skeleton import Skeleton
from compress.passes.sweep.sweep import sweep
from compress.recipes.engines.verdicts import loading_lines, warnings
from compress.recipes.plan import physical_ram, plan_opened
from compress.recipes.recipe import Gates, Recipe
from compress.recipes.stages import Stage, open_source, stages

WORK = ".compress"


class ArtifactReport(BaseModel):
    """One artifact: where it is, how large, and the one line that loads it in each engine that can.

    `quantized_share` is the part of all weights that is quantized, 0 … 1.
    """

    dialect: str
    path: str
    bytes: int
    bits_per_weight: float
    quantized_share: float
    verification: dict[str, float]
    loads: dict[str, str]


class Metrics(BaseModel):
    """What `evaluate` measured; None without it."""

    perplexity: float | None = None
    reference_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None


class PassReport(BaseModel):
    """One pass, or the passes that shared a sweep."""

    name: str
    seconds: float


class RunReport(BaseModel):
    """What `compress run --json` prints. `missed` names the gates that were missed."""

    model: str
    parameters: int
    source_bytes: int
    artifacts: list[ArtifactReport]
    metrics: Metrics
    passes: list[PassReport]
    missed: list[str]
    seconds: float
    peak_ram_bytes: int
    peak_vram_bytes: int


def run(
    recipe: Recipe,
    output: Path,
    *,
    fresh: bool = False,
    device: str = "cpu",
    max_ram: int | None = None,
    max_vram: int | None = None,
    reporter: Reporter | None = None,
) -> RunReport:
    """Run `recipe` into the directory `output`. The same call resumes a run that was cut off.

    Raises RefusedError if the plan does not fit, another process works there, or the directory holds a
    different run's work and `fresh` is not set.
    """
    reporter = reporter or Reporter()
    source = open_source(recipe, reporter.note)
    skeleton = Skeleton(load_config(source), source.spec, torch.device(device))
    budget = _budget(torch.device(device), max_ram, max_vram)
    for artifact in plan_opened(recipe, source, skeleton, budget).artifacts:
        for warning in warnings(artifact.dialect, artifact.targets):
            reporter.note(warning)
    work = output / WORK
    _make_directory(work)
    with Lock(output / f"{WORK}.lock"):
        if fresh:
            _clear(output, work, recipe)
        journal = Journal(work / "journal.jsonl")
        manifest = _manifest(recipe, source, device, budget)
        resumed = _check_resumable(journal, manifest, output)
        if resumed:
            reporter.note(f"resuming in {output}: {len(journal.of(kind='unit'))} layers are done")
        state = Run(source, skeleton, output, work, journal, reporter, budget, recipe.seed, manifest)
        return _execute(recipe, state)


def _budget(device: torch.device, max_ram: int | None, max_vram: int | None) -> int:
    """Bytes that the device which computes may use: what was allowed, or all that it has."""
    if device.type == "cuda":
        return max_vram or torch.cuda.get_device_properties(device).total_memory
    if max_vram is not None:
        raise UsageError(f"--max-vram speaks of a GPU, and this run is on {device}", "use --max-ram")
    return max_ram or physical_ram()


def _execute(recipe: Recipe, state: Run) -> RunReport:
    finished = state.journal.of(kind="report")
    if finished and all((state.output / a["path"]).is_dir() for a in finished[0]["report"]["artifacts"]):
        return _with_paths(RunReport.model_validate(finished[0]["report"]), state.output)
    started = time.perf_counter()
    planned = stages(recipe.passes)
    for state.stage, stage in enumerate(planned):
        if isinstance(stage, ModelPass):
            stage.prepare(state)
    passes = [_timed(planned, index, state) for index in range(len(planned))]
    report = _report(recipe, state, passes, time.perf_counter() - started)
    _mark(report, state.output)
    write_json(
        state.output / "compress.json",
        {**state.manifest, "report": report.model_dump(exclude={"peak_ram_bytes"})},
    )
    state.journal.append({"kind": "report", "report": report.model_dump()})
    for folder in state.work.glob("stage-*"):
        shutil.rmtree(folder)
    return _with_paths(report, state.output)


def _timed(planned: Sequence[Stage], index: int, state: Run) -> PassReport:
    started = time.perf_counter()
    stage, following = planned[index], planned[index + 1 : index + 2]
    state.stage = index
    state.following = next((steps for steps in following if isinstance(steps, tuple)), ())
    if isinstance(stage, ModelPass):
        stage.model(state)
        name = stage.name
    else:
        sweep(state, index, stage)
        name = " + ".join(step.name for step in stage)
    return PassReport(name=name, seconds=time.perf_counter() - started)


def _report(recipe: Recipe, state: Run, passes: list[PassReport], seconds: float) -> RunReport:
    artifacts = [
        ArtifactReport(
            **{key: record[key] for key in ArtifactReport.model_fields if key != "loads"},
            loads=loading_lines(open_checkpoint(state.output / record["path"])),
        )
        for record in state.journal.of(kind="artifact")
    ]
    scores = state.scores
    metrics = Metrics(**{name: getattr(scores, name) for name in Metrics.model_fields}) if scores else Metrics()
    return RunReport(
        model=recipe.model,
        parameters=sum(spec.size for spec in state.source.spec.tensors.values()),
        source_bytes=state.source.nbytes(),
        artifacts=artifacts,
        metrics=metrics,
        passes=passes,
        missed=_missed(recipe.gates, metrics),
        seconds=seconds,
        peak_ram_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_vram_bytes=torch.cuda.max_memory_allocated() if state.device.type == "cuda" else 0,
    )


def _mark(report: RunReport, output: Path) -> None:
    """Artifacts that miss a gate are kept, and say so."""
    for artifact in report.artifacts if report.missed else ():
        path = output / artifact.path / "compress.json"
        manifest = parse_json(read_bytes(path, 1 << 30), path)
        write_json(path, {**manifest, "missed_gates": report.missed})


def _with_paths(report: RunReport, output: Path) -> RunReport:
    """The report with paths that a shell can use where it stands."""
    artifacts = []
    for artifact in report.artifacts:
        path = str(output / artifact.path)
        loads = {engine: line.replace("{path}", path) for engine, line in artifact.loads.items()}
        artifacts.append(artifact.model_copy(update={"path": path, "loads": loads}))
    return report.model_copy(update={"artifacts": artifacts})


def _missed(gates: Gates, metrics: Metrics) -> list[str]:
    missed = []
    for gate, limit, value in (
        ("max_kl", gates.max_kl, metrics.kl_divergence),
        ("max_perplexity", gates.max_perplexity, metrics.perplexity),
    ):
        if limit is not None and (value is None or value > limit):
            missed.append(f"{gate}: {'not measured' if value is None else f'{value:.4g}'} is above {limit:.4g}")
    return missed


def _manifest(recipe: Recipe, source: Checkpoint, device: str, max_ram: int) -> dict[str, Any]:
    """What makes the bytes what they are: recipe, inputs, versions. A run resumes only if all of it is the same."""
    packages = ("compress-llm", "torch", "transformers", "tokenizers", "safetensors", "gguf")
    return {
        "recipe": recipe.model_dump(mode="json"),
        "source": {"dialect": source.dialect, "files": _hashes(source.path)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {"device": device, "threads": torch.get_num_threads(), "max_ram": max_ram},
    }


def _hashes(path: Path) -> dict[str, str]:
    if path.is_file():
        return {path.name: sha256_file(path)}
    return {file.name: sha256_file(file) for file in sorted(path.iterdir()) if file.is_file()}


def _check_resumable(journal: Journal, manifest: Mapping[str, Any], output: Path) -> bool:
    """Whether this goes on with an earlier run; a new one writes its manifest first."""
    if not journal.records:
        journal.append({"kind": "manifest", "manifest": manifest})
        return False
    earlier = journal.records[0].get("manifest", {})
    changed = [field for field, value in manifest.items() if earlier.get(field) != value]
    if changed:
        raise RefusedError(
            f"{output} holds the work of a run with another {' and '.join(changed)}",
            "choose another output directory, or start over with --fresh",
        )
    return True


def _make_directory(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"cannot make {work}: {error.strerror}", "choose an output directory that you may write to"
        ) from error


def _clear(output: Path, work: Path, recipe: Recipe) -> None:
    """Forget an earlier run: its work, and the artifacts that it recorded as its own."""
    for record in Journal(work / "journal.jsonl").of(kind="artifact"):
        shutil.rmtree(output / record["path"], ignore_errors=True)
    shutil.rmtree(work)
    work.mkdir()
