"""Recipe + file headers → stages, bytes, memory, time, refusals. No weight is read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.formats.files.native import stored_bytes
from compress.kernels.share import ALONE, Crew
from compress.passes.artifact.zeros import zeros_told
from compress.passes.choice.chooser import Chooser
from compress.passes.choice.ladder import Ladder
from compress.passes.core.base import LayerPass, ModelPass, Pass, Product, Rung, Setting
from compress.passes.core.report import Reporter
from compress.passes.forward.cost import Cost, Extent
from compress.passes.model.outline import Known
from compress.passes.sweep.cost import sweep_cost
from compress.recipes.engines.subject import Subject
from compress.recipes.engines.verdicts import refuse_idle_patterns, refuse_unloadable, verdicts
from compress.recipes.figures.budgets import least_memory, memory_here, refuse_disk, refuse_memory
from compress.recipes.figures.planned import ArtifactPlan, FileSize, Plan, RepairPlan, StagePlan
from compress.recipes.opening import Outlined, outline_recipe
from compress.recipes.pace import Pace, pace
from compress.recipes.recipe import Recipe
from compress.recipes.stages import Steps, even, first_numbers, given, largest, layerwise, least, stages, writes

ROUNDS = 4
"""So often is a model that misses its gates repaired: the last round takes all that is allowed."""

_BEGUN, _LINE, _SAID = 4096, 400, 800
"""Bytes that the journal says of a stage and of a tensor, and an artifact's manifest of a tensor. Measured."""
_ON_TEXT = "calibrate on text: `- calibrate: {data: builtin}`"


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
    for steps in even(passes, headers, anatomy):
        _plan(opened, steps, max_ram, here, crew)
    return planned.model_copy(update={"artifacts": _bounds([plan.artifacts for plan in plans])})


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


def _bounds(ways: Sequence[Sequence[ArtifactPlan]]) -> list[ArtifactPlan]:
    """The largest that each artifact may become."""
    note = "at most so many bytes: a stage of the run chooses the bits"
    most = [max(same, key=lambda artifact: artifact.bytes) for same in zip(*ways)]
    return [artifact.model_copy(update={"notes": [*artifact.notes, note]}) for artifact in most]


def _plan(opened: Outlined, passes: Sequence[Pass], max_ram: int, here: Pace, crew: Crew) -> Plan:
    """The plan of one way that the run may go. Raises RefusedError for one that needs more memory."""
    recipe, source = opened.recipe, opened.source
    way = _walked(opened, passes, max_ram, here, crew)
    if way.memory > max_ram:
        large = [stage for stage in way.planned if stage.memory_bytes * stage.processes > max_ram]
        several = any(stage.processes > 1 and not stage.sharded for stage in large)
        least = least_memory(lambda allowed: _walked(opened, passes, allowed, here, crew).memory)
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


def _walked(opened: Outlined, passes: Sequence[Pass], budget: int, here: Pace, crew: Crew) -> _Way:
    """The model's headers after all stages, within a budget of memory or beyond it."""
    way, grouped = _Way(opened, passes, budget, here, crew), stages(passes)
    for first, steps, after in zip(first_numbers(grouped), grouped, [*grouped[1:], ()]):
        text = opened.texts.get(first)
        way.take(first, steps, (text.count, text.length) if text else None, after)
    return way


class _Way:
    """The model's headers on their way through the stages, each with the anatomy that its shapes ask for."""

    def __init__(self, opened: Outlined, passes: Sequence[Pass], budget: int, here: Pace, crew: Crew) -> None:
        self.passes = passes
        self.known: Known = opened.model
        self.origin, self.budget = opened.recipe.origin, budget
        self.path, self.model = opened.source.path, opened.source.spec
        self.planned: list[StagePlan] = []
        self.products: list[tuple[Product, ModelSpec]] = []
        self.calibration: Extent | None = None
        self.energies_alone = False
        self.folder = 0
        self._lying = 0
        self._pace, self._crew = here, crew

    @property
    def memory(self) -> int:
        """The most that a stage takes, all processes together that share it."""
        return max((stage.memory_bytes * stage.processes for stage in self.planned), default=0)

    def take(self, first: int, steps: Steps, text: Extent | None, after: Steps) -> None:
        """Plan one stage, from the pass of number `first` on; `text` is what it has read, `after` the next stage."""
        before, written = self.model, len(self.products)
        self.known = self.known.of_spec(before, self.path)
        prepared: set[str] = set()
        for number, step in enumerate(steps, start=first):
            with self.origin.placing("passes", number):
                self.products += [(product, self.model) for product in self._products(number, step)]
                self.model = self._apply(step, prepared)
            if isinstance(step, ModelPass) and step.calibrates:
                self.calibration, self.energies_alone = text or step.extent(), step.energies_alone
        with self.origin.placing("passes", first):  # only now: what is refused need not have a cost
            cost = self._cost(before, steps, text, after)
        changed = sum(self.model.tensors.get(name) != spec for name, spec in before.tensors.items())
        kept = _BEGUN + cost.kept + self._left_by(steps, before)
        self._store(cost.disk, kept + sum(_stored(product) for product, _ in self.products[written:]))
        self.planned.append(
            StagePlan(
                passes=[step.name for step in steps],
                tensors=changed,
                forwards=cost.forwards,
                seconds=self._pace.seconds(cost.effort),
                memory_bytes=cost.memory,
                disk_bytes=cost.disk,
                kept_bytes=kept,
                processes=cost.processes,
                shared=cost.shared,
                sharded=cost.sharded,
                notes=list(cost.notes),
            )
        )

    def _left_by(self, steps: Steps, before: ModelSpec) -> int:
        """Bytes of what the stage rewrites, in its units and the journal."""
        taken = {f"{name}.weight" for step in layerwise(steps) for name in step.targets(self.known.anatomy)}
        changed = {name for name, spec in self.model.tensors.items() if before.tensors.get(name) != spec}
        return sum(stored_bytes(self.model.tensors[name]) + _LINE for name in taken | changed)

    def _store(self, meanwhile: int, left: int) -> None:
        """So much more lies in the run's folder."""
        self._lying += left
        self.folder = max(self.folder, self._lying + meanwhile)

    def _products(self, number: int, step: Pass) -> Sequence[Product]:
        """What `step` will write of the model as it is by then."""
        try:
            return step.products(self.model)
        except RefusedError as error:
            later = [found.name for found in self.passes[number + 1 :] if isinstance(found, LayerPass)]
            if not later or any(spec.format for spec in self.model.tensors.values()):
                raise
            message = f"{step.name} stands before {later[-1]}: {error}"
            raise RefusedError(message, f"move {step.name} after {later[-1]}") from error

    def _apply(self, step: Pass, prepared: set[str]) -> ModelSpec:
        """What `step` makes of the model. `prepared`: what an earlier pass of the same stage hands on unrounded."""
        if isinstance(step, LayerPass):
            targets = {f"{name}.weight" for name in step.targets(self.known.anatomy)}
            quantized = (name for name in sorted(targets - prepared) if self.model.tensors[name].format is not None)
            if again := next(quantized, None):
                raise RefusedError(
                    f"{step.name}: {again} was quantized by an earlier pass", "skip it in one of the two passes"
                )
            prepared -= targets
            prepared |= targets if step.prepares() else set()
        return step.plan(self.model, self.known.anatomy)

    def _cost(self, model: ModelSpec, steps: Steps, text: Extent | None, after: Steps) -> Cost:
        anatomy, first = self.known.anatomy, steps[0]
        if isinstance(first, ModelPass):
            extent = self._calibration([first.name]) if first.calibrated else text
            extent = self.calibration if first.heeds_calibration else extent
            return first.cost(Setting(model, anatomy, extent or (0, 0), self.budget, layerwise(after), self._crew))
        passes = layerwise(steps)
        needy = [step.name for step in passes if step.needs()]
        if needy and self.energies_alone:
            _refuse_beyond_energies(passes)
            return sweep_cost(passes, model, anatomy, (0, 0), self.budget)
        extent = self._calibration(needy) if needy else (0, 0)
        return sweep_cost(passes, model, anatomy, extent, self.budget, self._crew)

    def _calibration(self, names: Sequence[str]) -> Extent:
        """The sequences that the passes `names` want; raises UsageError if there are none."""
        if self.energies_alone:
            raise RefusedError(f"{', '.join(names)} runs text through the model, and an imatrix is none", _ON_TEXT)
        if self.calibration is None:
            hint = "put `- calibrate: {data: builtin}` before it"
            raise UsageError(f"{', '.join(names)} needs calibration data", hint)
        return self.calibration


def _refuse_beyond_energies(passes: Sequence[LayerPass]) -> None:
    """Raise RefusedError for a pass that needs more than an imatrix holds."""
    for step in passes:
        if beyond := sorted(kind.says for kind in step.beyond_energy()):
            raise RefusedError(
                f"{step.name} needs {' and '.join(beyond)}; an imatrix holds the energy of every input alone", _ON_TEXT
            )


def _stored(product: Product) -> int:
    """Bytes of an artifact: its weights, the files that go with them, what is said of every tensor."""
    files = sum(len(data) for data in product.model.files.values())
    return product.layout.nbytes + files + _SAID * len(product.model.tensors)


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
