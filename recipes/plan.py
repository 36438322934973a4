"""Recipe + file headers → stages, bytes, memory, time, refusals. No weight is read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.share import ALONE, Crew
from compress.passes.artifact.zeros import zeros_told
from compress.passes.choice.chooser import Chooser
from compress.passes.choice.ladder import Ladder
from compress.passes.core.base import Pass, Product, Rung
from compress.passes.core.report import Reporter
from compress.recipes.engines.subject import Subject
from compress.recipes.engines.verdicts import refuse_idle_patterns, refuse_unloadable, verdicts
from compress.recipes.figures.budgets import least_memory, memory_here, refuse_disk, refuse_memory
from compress.recipes.figures.pace import Pace, pace
from compress.recipes.figures.planned import ArtifactPlan, FileSize, Plan, RepairPlan
from compress.recipes.figures.ranges import ranged
from compress.recipes.opening import Outlined, outline_recipe
from compress.recipes.recipe import Recipe
from compress.recipes.stages import even, given, largest, least, stages, writes
from compress.recipes.way import walked

ROUNDS = 4
"""So often is a model that misses its gates repaired: the last round takes all that is allowed."""


def plan(
    recipe: Recipe,
    *,
    max_ram: int | None = None,
    max_disk: int | None = None,
    reporter: Reporter | None = None,
    cache: Path | None = None,
    crew: Crew = ALONE,
) -> Plan:
    """Plan a recipe. Raises RefusedError for what cannot be done, loaded or held, InputError for bad files.

    `crew` are the processes that will work together, `max_ram` the memory that those of them share which share any,
    `max_disk` what the run's folder may take. What takes longest, tracing the model and counting its tokens, is found
    in the folder `cache` from then on.
    """
    outlined = outline_recipe(recipe, reporter or Reporter(), cache)
    return plan_opened(outlined, max_ram or memory_here(), crew, max_disk)


def plan_opened(opened: Outlined, max_ram: int, crew: Crew = ALONE, max_disk: int | None = None) -> Plan:
    """`plan` for what is open already."""
    passes, headers, anatomy = opened.recipe.passes, opened.source.spec, opened.model.anatomy
    here = pace()
    plans = [_plan(opened, steps, max_ram, here, crew) for steps in largest(passes, headers, anatomy)]
    repair = _repair(opened, plans[0], max_ram, here, crew)
    planned = plans[0].model_copy(update={"repair": repair, "fit": opened.fit})
    refuse_disk(max(plan.folder_bytes for plan in plans), sys.maxsize if max_disk is None else max_disk)
    if not any(isinstance(step, Chooser) for step in passes):
        _refuse_large(opened.recipe, planned.artifacts)
        return planned
    others = [_plan(opened, steps, max_ram, here, crew) for steps in even(passes, headers, anatomy)]
    known = ranged([plan.artifacts for plan in plans], [plan.artifacts for plan in others])
    return planned.model_copy(update={"artifacts": known})


def planned_bytes(opened: Outlined, passes: Sequence[Pass], max_ram: int) -> int:
    """The weights of the largest artifact, with other options in the recipe's passes. Raises RefusedError."""
    return _largest_of([_with_passes(opened, passes, max_ram, pace(), ALONE)])


def fitting_rungs(opened: Outlined, max_ram: int) -> list[Rung]:
    """What modules can be raised to by a repair: what every export of the recipe holds, and its targets load."""
    return list(_higher(opened, _ladder(opened), max_ram, pace(), ALONE))


def _ladder(opened: Outlined) -> Ladder:
    """From what the passes say, and from the first candidate where a stage is to choose."""
    passes, model, anatomy = opened.recipe.passes, opened.source.spec, opened.model.anatomy
    return Ladder(given(passes, least(passes, model, anatomy), model, anatomy), anatomy)


def _higher(opened: Outlined, ladder: Ladder, max_ram: int, here: Pace, crew: Crew) -> dict[Rung, Plan]:
    """The plans with all modules that have less raised to one rung, of those that can be done."""
    found: dict[Rung, Plan] = {}
    passes, model, anatomy = opened.recipe.passes, opened.source.spec, opened.model.anatomy
    lowest = least(passes, model, anatomy)
    for rung in ladder.rungs():
        chosen = ladder.at_least(rung)
        own = ladder.raised(passes, {name: each for name, each in chosen.items() if name not in lowest})
        with suppress(RefusedError):  # a container, or an engine, that does not have it
            raised = given(own, {name: chosen.get(name, each) for name, each in lowest.items()}, model, anatomy)
            found[rung] = _plan(opened, raised, max_ram, here, crew)
    return found


def _with_passes(opened: Outlined, passes: Sequence[Pass], max_ram: int, here: Pace, crew: Crew) -> Plan:
    return _plan(opened, largest(passes, opened.source.spec, opened.model.anatomy)[0], max_ram, here, crew)


def _repair(opened: Outlined, planned: Plan, max_ram: int, here: Pace, crew: Crew) -> RepairPlan | None:
    """What a repair may cost: every round does again what stands from the first pass on that is raised."""
    recipe = opened.recipe
    if not recipe.gates.repair:
        return None
    ladder = _ladder(opened)
    higher = _higher(opened, ladder, max_ram, here, crew)
    if not higher:
        return RepairPlan(rounds=0, passes=[], seconds=0.0, bytes=_largest_of([planned]))
    first = next(at for at, stage in enumerate(planned.stages) if set(stage.passes) & set(ladder.names))
    staged = list(zip(planned.stages, stages(recipe.passes)))[first:]
    again = [stage for stage, steps in staged if not any(map(writes, steps))]
    most = _largest_of([planned, *higher.values()])
    return RepairPlan(
        rounds=ROUNDS,
        passes=[name for stage in again for name in stage.passes],
        seconds=ROUNDS * sum(stage.seconds for stage in again),
        bytes=min(most, opened.ceiling[0]),
    )


def _largest_of(plans: Sequence[Plan]) -> int:
    return max((artifact.bytes for plan in plans for artifact in plan.artifacts), default=0)


def _refuse_large(recipe: Recipe, artifacts: Sequence[ArtifactPlan]) -> None:
    """What is known to miss the gate on size is not computed."""
    limit = recipe.gates.max_bytes
    largest = max(artifacts, key=lambda artifact: artifact.bytes, default=None)
    if limit is not None and largest is not None and largest.bytes > limit:
        raise RefusedError(
            f"{recipe.origin.line('gates', 'max_bytes')}gates.max_bytes: {largest.path} takes {largest.bytes:,} bytes, "
            f"and {limit:,} are allowed",
            "fewer bits, larger groups, or a narrower type for the embeddings; or raise the gate",
        )


def _plan(opened: Outlined, passes: Sequence[Pass], max_ram: int, here: Pace, crew: Crew) -> Plan:
    """The plan of one way that the run may go. Raises RefusedError for one that needs more memory."""
    recipe, source = opened.recipe, opened.source
    way = walked(opened, passes, max_ram, here, crew)
    if way.memory > max_ram:
        large = [stage for stage in way.planned if stage.memory_bytes * stage.processes > max_ram]
        several = any(stage.processes > 1 and not stage.sharded for stage in large)
        least = least_memory(lambda allowed: walked(opened, passes, allowed, here, crew).memory)
        refuse_memory(least, max_ram, several)
    artifacts = [_artifact(product, model, recipe.targets) for product, model in way.products]
    _refuse_duplicates(artifacts)
    refuse_idle_patterns(recipe.targets, [product.model for product, _ in way.products])
    refuse_unloadable(recipe.targets, [verdict for artifact in artifacts for verdict in artifact.targets])
    return Plan(
        model=recipe.model,
        architecture=str(source.spec.config.get("model_type")),
        parameters=source.spec.parameters,
        source_bytes=source.nbytes(),
        stages=way.planned,
        artifacts=artifacts,
        memory_bytes=way.memory,
        disk_bytes=max((stage.disk_bytes for stage in way.planned), default=0),
        seconds=sum(stage.seconds for stage in way.planned),
        max_ram=max_ram,
        processes=crew.count,
        folder_bytes=way.folder,
        verdict="fits",
    )


def _artifact(product: Product, model: ModelSpec, targets: Sequence[str]) -> ArtifactPlan:
    subject, layout = Subject.of(product), product.layout
    zeros = zeros_told(product.model)
    told = [*layout.substitutes, *([zeros] if zeros else [])]
    return ArtifactPlan(
        dialect=product.dialect,
        path=product.folder,
        files=[FileSize(name=file.name, bytes=file.nbytes) for file in layout.files],
        bytes=layout.nbytes,
        bits_per_weight=layout.nbytes * 8 / model.parameters,
        notes=[*layout.notes, *told],
        told=told,
        targets=verdicts(product.folder, subject, targets),
    )


def _refuse_duplicates(artifacts: Sequence[ArtifactPlan]) -> None:
    paths = [artifact.path for artifact in artifacts]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"two exports write to {path}", "give one of them another `path:`")
