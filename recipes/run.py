"""Run a recipe: plan it, take its stages in order, report. A run that was cut off goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress.formats.base import Checkpoint
from compress.formats.files.carried import TEMPLATE_PATTERN
from compress.formats.files.source import is_hub_id
from compress.formats.files.storage import require_space, sha256_file, write_json
from compress.kernels.fallbacks import counting
from compress.kernels.laps import laps
from compress.passes.artifact.licence import licence_of
from compress.passes.artifact.record import SIGNATURE
from compress.passes.artifact.write import Artifact, written_at
from compress.passes.core.base import ModelPass, Pass
from compress.passes.core.journal import Done, Journal
from compress.passes.core.outcome import Outcome
from compress.passes.core.processes import Processes
from compress.passes.core.report import Reporter
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.sweep.sweep import sweep
from compress.recipes.engines.verdicts import loading_lines, notes
from compress.recipes.figures.cards import allowed_on, kept_on
from compress.recipes.figures.planned import Plan
from compress.recipes.figures.profile import profile_of
from compress.recipes.opening import Opened, model_of, open_recipe
from compress.recipes.plan import plan_opened
from compress.recipes.recipe import Recipe
from compress.recipes.report import PassReport, Reported, RunReport, make_report, mark, metrics_of, with_paths
from compress.recipes.stages import keyed, layerwise, writes
from compress.recipes.workshop import HALF, WORK, begin, products_of, shared_workshop

_COMPUTING = ("compress-llm", "torch", "transformers", "tokenizers")
_WRITING = ("safetensors", "gguf")


def run(
    recipe: Recipe,
    output: Path,
    *,
    fresh: bool = False,
    device: str = "cpu",
    max_ram: int | None = None,
    max_vram: int | None = None,
    max_disk: int | None = None,
    reporter: Reporter | None = None,
    processes: Processes | None = None,
    trial: Sequence[Pass] | None = None,
) -> RunReport:
    """Run `recipe` into the directory `output`. The same call resumes a run that was cut off.

    A `trial` writes no artifact, and does these passes at its end: a run of the recipe then finds all else done.

    What an earlier run in `output` has computed is used as far as it applies, whatever else was changed since.
    Within `profiled()` the report says where time went (of what this call did).
    All of `processes` make the same call at the same time, and get the same report. Raises RefusedError if the plan
    does not fit or another process works there.
    """
    reporter, processes = reporter or Reporter(), processes or Processes()
    place = torch.device(device)
    budget = processes.share(device).given(allowed_on(place, max_ram, max_vram))  # it decides about bytes
    with processes.turn():  # the first downloads what is to be downloaded
        opened = open_recipe(recipe, place, reporter)
    reporter.tell("planning")
    planned = plan_opened(opened.outlined, budget, processes.crew(place.type), max_disk)
    if division := planned.division():
        reporter.note(division)
    files = source_hashes(opened.source.path, reporter)
    with counting(), kept_on(place, max_vram), shared_workshop(output, fresh, processes) as journal:
        processes.on_main(lambda: require_space(output, planned.folder_bytes - _lying_in(output / WORK)))
        passes = (*opened.recipe.passes, *(trial or ()))
        stages = keyed(passes, _base(opened, files), opened.texts, output / WORK)
        products = processes.share(device).given(products_of(journal, stages, place))  # measured, so by one for all
        state = _state(opened, files, output, journal, budget, reporter, processes, products)
        if trial is not None:
            stages = [stage for stage in stages if not any(writes(step) for step in stage.passes)]
        report = _execute(opened.recipe, state, stages, trial is not None)
    return report.model_copy(update={"notes": [*_said(planned), *_fallen(report)]})


def _base(opened: Opened, files: Mapping[str, str]) -> dict[str, Any]:
    """What the bytes of every stage depend on."""
    return {
        "seed": opened.recipe.seed,
        **{f"source {name}": digest for name, digest in files.items()},
        **{f"version of {name}": version(name) for name in _COMPUTING},
    }


def _state(
    opened: Opened, files: Mapping[str, str], output: Path, journal: Journal, budget: int, reporter: Reporter,
    processes: Processes, products: str,
) -> Run:  # fmt: skip
    """The run before its first stage."""
    device = opened.skeleton.device
    return Run(
        source=opened.source,
        skeleton=opened.skeleton,
        output=output,
        work=output / WORK,
        journal=journal,
        reporter=reporter,
        max_ram=budget,
        seed=opened.recipe.seed,
        machine={
            "device": str(device),
            "threads": torch.get_num_threads(),
            "max_ram": budget,
            **({"products": products} if products else {}),
        },
        manifest=_manifest(opened.recipe, opened.source, files),
        source_digest=_digest(files),
        loads=loading_lines,
        processes=processes,
        half=products == HALF,
    )


def _said(planned: Plan) -> list[str]:
    """What a plan has to say at a run's end."""
    said = [note for artifact in planned.artifacts for note in notes(artifact.dialect, artifact.targets)]
    said += [f"{artifact.path}: {line}" for artifact in planned.artifacts for line in artifact.told]
    return said + [note for stage in planned.stages for note in stage.notes]


def _fallen(report: RunReport) -> list[str]:
    """What ran otherwise than it might, and how often."""
    return [f"{what} ({times:,} ×)" for what, times in report.fallbacks.items()]


def _lying_in(folder: Path) -> int:
    """Bytes of the files of an earlier run, which is gone on with: they are not written again."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _execute(recipe: Recipe, state: Run, stages: Sequence[Stage], trial: bool) -> RunReport:
    key = _digest([*(stage.key for stage in stages), recipe.gates.model_dump()])
    known = state.journal.of(Reported) if trial else state.journal.of(Reported)[-1:]
    reported = [each.report for each in known if each.stage == key]
    if reported and len(reported[-1].artifacts) == len(_artifacts(state, stages)):
        return with_paths(reported[-1], state.output)
    if not state.processes.main:
        return _follow(state, stages)
    for stage in stages:
        for step in stage.passes:
            if isinstance(step, ModelPass):
                step.prepare(state, stage)
    passes = [_timed(stages, number, state) for number in range(len(stages))]
    report = make_report(recipe, state, _artifacts(state, stages), passes)
    if kept := laps():
        report = report.model_copy(update={"profile": profile_of(kept, state.device, state.half)})
    return state.first(lambda: _told(report, state, key))


def _told(report: RunReport, state: Run, key: str) -> RunReport:
    """The report, once it is written and committed."""
    mark(report, state.output)
    summary = report.model_dump(exclude={"peak_ram_bytes", "bits"})  # the manifest of the stage has the bits
    for seldom in ("profile", "fallbacks"):
        if not summary[seldom]:
            del summary[seldom]
    write_json(state.output / "compress.json", {**state.manifest, **state.left.manifest, "report": summary})
    state.journal.append(Reported(stage=key, report=report))
    return with_paths(report, state.output)


def _follow(state: Run, stages: Sequence[Stage]) -> RunReport:
    """The part of a process that is not the main one: train with it, and take over what else it does."""
    for stage in stages:
        _take(stage, state)
    return state.first(lambda: with_paths(state.journal.of(Reported)[-1].report, state.output))


def _timed(stages: Sequence[Stage], number: int, state: Run) -> PassReport:
    """Do one stage, or take over what it did before."""
    stage = stages[number]
    complete = begin(state.journal, stages, number, state.machine, state.reporter)
    kept = laps()
    with kept.stage(stage.title) if kept else nullcontext():
        left = _take(stage, state)
    if not complete:
        state.journal.append(Done(stage=stage.key, seconds=state.journal.seconds(stage.key)))
    stage.drop_hidden_states()
    seconds = state.journal.of(Done, stage.key)[-1].seconds
    return PassReport(name=stage.title, seconds=seconds, metrics=metrics_of(left))


def _take(stage: Stage, state: Run) -> Outcome:
    """What the stage makes of the model, and leaves for those after it, becomes that of the run."""
    skeleton = state.skeleton.of(state.model)
    if skeleton is not state.skeleton:
        state.skeleton, state.untouched = skeleton, state.model.frozen()
    left = _do(stage, state)
    before = replace(state.left, scores=None) if any(step.changes for step in stage.passes) else state.left
    state.left = before.then(left)
    return left


def _do(stage: Stage, state: Run) -> Outcome:
    if steps := layerwise(stage.passes):
        return sweep(state, stage, steps)
    (step,) = stage.passes
    assert isinstance(step, ModelPass)
    return step.model(state, stage) if step.together else state.first(lambda: step.model(state, stage))


def _artifacts(state: Run, stages: Sequence[Stage]) -> list[Artifact]:
    """What the run's stages have written, in their order."""
    return [written for stage in stages if (written := written_at(state, stage)) is not None]


def _manifest(recipe: Recipe, source: Checkpoint, files: Mapping[str, str]) -> dict[str, Any]:
    """What every artifact says of how it came about: recipe, inputs, versions, machine."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_text": recipe.text(),
        "source": {"dialect": source.dialect, "files": dict(files), **_provenance(recipe, source)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in (*_COMPUTING, *_WRITING)}},
    }


def _provenance(recipe: Recipe, source: Checkpoint) -> dict[str, Any]:
    """Where the model is known from, and its licence, as far as anything tells."""
    licence = licence_of(source.path, source.files())
    return {
        **({"hub": recipe.model} if is_hub_id(model_of(recipe)) else {}),
        **({"licence": licence} if licence else {}),
    }


def source_hashes(path: Path, reporter: Reporter) -> dict[str, str]:
    """SHA-256 of the files of the model at `path`, by name, as manifests record them."""
    inside = sorted([*path.glob("*"), *path.glob(TEMPLATE_PATTERN)])
    # A signature is of a model, not a part of it: what is made of one that was signed meanwhile is the same.
    files = [path] if path.is_file() else [file for file in inside if file.is_file() and file.name != SIGNATURE]
    reporter.start("hash the source", len(files), "file")
    digests = {}
    for file in files:
        reporter.tell(f"hashing {file.name}")
        digests[file.name if file == path else file.relative_to(path).as_posix()] = sha256_file(file)
        reporter.advance(file.name)
    reporter.finish()
    return digests


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
