"""Recipe + file headers → stages, bytes, memory, time, refusals. No weight is read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from pydantic import BaseModel

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.formats.views.fit import fit_spec
from compress.formats.views.matrices import restored_spec
from compress.passes.calibrate import Calibrate
from compress.passes.choice.chooser import Chooser
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.evaluate import Evaluate
from compress.passes.export import Export
from compress.passes.model.config import load_config
from compress.passes.model.skeleton import Skeleton
from compress.recipes.cost import Cost, sweep_cost
from compress.recipes.engines.checks import Subject
from compress.recipes.engines.verdicts import Verdict, refuse_unloadable, verdicts
from compress.recipes.recipe import Recipe
from compress.recipes.stages import even, largest, open_source, stages


class StagePlan(BaseModel):
    """One stage: its passes, how often it forwards the calibration sequences through each layer, what it takes."""

    passes: list[str]
    tensors: int
    forwards: int
    seconds: float
    memory_bytes: int


class FileSize(BaseModel):
    """A weight file that will be written."""

    name: str
    bytes: int


class ArtifactPlan(BaseModel):
    """An artifact that will be written: exact to the byte."""

    dialect: str
    path: str
    files: list[FileSize]
    bytes: int
    bits_per_weight: float
    notes: list[str]
    targets: list[Verdict]


class Plan(BaseModel):
    """What a recipe will do. `memory_bytes` and `seconds` are estimates, everything in bytes on disk is exact."""

    model: str
    architecture: str
    parameters: int
    source_bytes: int
    stages: list[StagePlan]
    artifacts: list[ArtifactPlan]
    memory_bytes: int
    seconds: float
    max_ram: int
    verdict: str


def plan(recipe: Recipe, *, max_ram: int | None = None, progress: Callable[[str], None] = lambda _: None) -> Plan:
    """Plan a recipe. Raises RefusedError for what cannot be done, loaded or held, InputError for bad files."""
    source = open_source(recipe, progress)
    skeleton = Skeleton(load_config(source), source.spec, torch.device("cpu"))
    return plan_opened(recipe, source, skeleton, max_ram or physical_ram())


def plan_opened(recipe: Recipe, source: Checkpoint, skeleton: Skeleton, max_ram: int) -> Plan:
    """`plan` for a model whose headers are open already."""
    plans = [
        _plan(recipe, passes, source, skeleton, max_ram)
        for passes in largest(recipe.passes, source.spec, skeleton.anatomy)
    ]
    if not any(isinstance(step, Chooser) for step in recipe.passes):
        return plans[0]
    for passes in even(recipe.passes, source.spec, skeleton.anatomy):
        _plan(recipe, passes, source, skeleton, max_ram)
    return plans[0].model_copy(update={"artifacts": _bounds([plan.artifacts for plan in plans])})


def _bounds(ways: Sequence[Sequence[ArtifactPlan]]) -> list[ArtifactPlan]:
    """The largest that each artifact may become."""
    note = "at most so many bytes: a stage of the run chooses the bits"
    most = [max(same, key=lambda artifact: artifact.bytes) for same in zip(*ways)]
    return [artifact.model_copy(update={"notes": [*artifact.notes, note]}) for artifact in most]


def _plan(recipe: Recipe, passes: Sequence[Pass], source: Checkpoint, skeleton: Skeleton, max_ram: int) -> Plan:
    """The plan of one way that the run may go."""
    model, planned, artifacts = source.spec, [], []
    calibration: Calibrate | None = None
    rewritten: set[str] = set()
    prepared: set[str] = set()
    rate = _flops_per_second()
    for stage in stages(passes):
        steps: Sequence[Pass] = stage if isinstance(stage, tuple) else (stage,)
        before = model
        prepared.clear()
        for step in steps:
            model = _apply(step, model, skeleton, rewritten, prepared)
        if isinstance(stage, Calibrate):
            calibration = stage
        if isinstance(stage, Export):
            artifacts.append(_artifact(stage, model, recipe.targets))
        cost = _cost(stage, skeleton, before, calibration, max_ram)
        changed = sum(model.tensors[name] != spec for name, spec in before.tensors.items())
        planned.append(
            StagePlan(
                passes=[step.name for step in steps],
                tensors=changed,
                forwards=cost.forwards,
                seconds=cost.flops / rate,
                memory_bytes=cost.memory,
            )
        )
    _refuse_duplicates(artifacts)
    refuse_unloadable(recipe.targets, [verdict for artifact in artifacts for verdict in artifact.targets])
    memory = max((stage.memory_bytes for stage in planned), default=0)
    return Plan(
        model=recipe.model,
        architecture=str(source.spec.config.get("model_type")),
        parameters=sum(spec.size for spec in source.spec.tensors.values()),
        source_bytes=source.nbytes(),
        stages=planned,
        artifacts=artifacts,
        memory_bytes=memory,
        seconds=sum(stage.seconds for stage in planned),
        max_ram=max_ram,
        verdict=_verdict(memory, max_ram),
    )


def physical_ram() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _apply(step: Pass, model: ModelSpec, skeleton: Skeleton, rewritten: set[str], prepared: set[str]) -> ModelSpec:
    """What `step` makes of `model`. `prepared`: what an earlier pass of the same stage hands on unrounded."""
    after = step.plan(model, skeleton.anatomy)
    if isinstance(step, LayerPass):
        targets = {f"{name}.weight" for name in step.targets(skeleton.anatomy)}
        if again := sorted(targets & rewritten - prepared):
            raise RefusedError(
                f"{step.name}: {again[0]} was quantized by an earlier pass",
                "skip it in one of the two passes",
            )
        rewritten |= targets
        prepared -= targets
        prepared |= targets if step.prepares() else set()
    return after


def _cost(
    stage: Pass | tuple[LayerPass, ...],
    skeleton: Skeleton,
    model: ModelSpec,
    calibration: Calibrate | None,
    max_ram: int,
) -> Cost:
    if isinstance(stage, tuple):
        needs = frozenset().union(*(step.needs() for step in stage))
        sequences = _calibration_sequences([step.name for step in stage if step.needs()], calibration)
        streams = 2 if any(kind.teacher for kind in needs) else 1
        return sweep_cost(skeleton, model, sequences, streams, statistics=bool(needs), max_ram=max_ram)
    if isinstance(stage, Evaluate):
        cost = sweep_cost(skeleton, model, (stage.samples, stage.seq_len), 1, statistics=False, max_ram=max_ram)
        return replace(cost, flops=2 * cost.flops)
    sequences = _calibration_sequences(
        [stage.name] if isinstance(stage, ModelPass) and stage.calibrated else [], calibration
    )
    if isinstance(stage, Chooser):
        cost = sweep_cost(skeleton, model, sequences, 1, statistics=True, max_ram=max_ram)
        times, count = stage.checks()
        judged = (min(count, sequences[0]), sequences[1])
        check = sweep_cost(skeleton, model, judged, 1, statistics=False, max_ram=max_ram)
        return replace(cost, flops=cost.flops + times * check.flops)
    return sweep_cost(skeleton, model, sequences, 1, statistics=False, max_ram=max_ram)


def _calibration_sequences(names: Sequence[str], calibration: Calibrate | None) -> tuple[int, int]:
    """Count and length of the sequences that the passes `names` want; raises UsageError if there are none."""
    if not names:
        return 0, 0
    if calibration is None:
        hint = "put `- calibrate: {data: builtin}` before it"
        raise UsageError(f"{', '.join(names)} needs calibration data", hint)
    return calibration.samples, calibration.seq_len


def _artifact(step: Export, model: ModelSpec, targets: Sequence[str]) -> ArtifactPlan:
    layout, dialect = step.layout(model), step.container()
    written = restored_spec(fit_spec(model, dialect, step.requantize))
    subject = Subject(step.dialect, written, dialect.options(written))
    return ArtifactPlan(
        dialect=step.dialect,
        path=step.folder,
        files=[FileSize(name=file.name, bytes=file.nbytes) for file in layout.files],
        bytes=layout.nbytes,
        bits_per_weight=layout.nbytes * 8 / sum(spec.size for spec in model.tensors.values()),
        notes=list(layout.notes),
        targets=verdicts(step.folder, subject, targets),
    )


def _refuse_duplicates(artifacts: Sequence[ArtifactPlan]) -> None:
    paths = [artifact.path for artifact in artifacts]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"two exports write to {path}", "give one of them another `path:`")


def _verdict(memory: int, max_ram: int) -> str:
    if memory > max_ram:
        raise RefusedError(
            f"the run needs about {memory / 2**30:.1f} GiB of memory, and {max_ram / 2**30:.1f} GiB are allowed",
            "use fewer samples or a shorter seq_len, or raise --max-ram",
        )
    return "fits"


def _flops_per_second() -> float:
    """What this machine does in a matrix product: a probe of some hundredths of a second."""
    a = torch.ones(512, 512)
    torch.mm(a, a)
    started = time.perf_counter()
    for _ in range(8):
        torch.mm(a, a)
    return 8 * 2 * 512**3 / (time.perf_counter() - started)
