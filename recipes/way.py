"""A recipe's stages one after the other over file headers: what each makes of the model, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.formats.files.native import stored_bytes
from compress.kernels.share import Crew
from compress.passes.core.base import LayerPass, ModelPass, Pass, Product, Setting
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.shapes import Extent
from compress.passes.model.outline import Known
from compress.passes.sweep.cost import sweep_cost
from compress.recipes.figures.pace import Pace
from compress.recipes.figures.planned import StagePlan
from compress.recipes.opening import Outlined
from compress.recipes.stages import Steps, first_numbers, layerwise, stages

_BEGUN, _LINE, _SAID = 4096, 400, 800
"""Bytes that the journal says of a stage and of a tensor, and an artifact's manifest of a tensor. Measured."""
_ON_TEXT = "calibrate on text: `- calibrate: {data: builtin}`"


def walked(opened: Outlined, passes: Sequence[Pass], budget: int, here: Pace, crew: Crew) -> Way:
    """The model's headers after all stages, within a budget of memory or beyond it."""
    way, grouped = Way(opened, passes, budget, here, crew), stages(passes)
    for first, steps, after in zip(first_numbers(grouped), grouped, [*grouped[1:], ()]):
        text = opened.texts.get(first)
        way.take(first, steps, (text.count, text.length) if text else None, after)
    return way


class Way:
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
