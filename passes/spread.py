"""Zeros per tensor, chosen from what each would cost: the least loss of the whole model for as many zeros.

Every linear is pruned by Wanda at every candidate: choice/allocation.py says how they compare. Which layers bear
more zeros than others hardly depends on the method that then prunes (OWL, arXiv 2310.05175, goes by outliers alone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field

from compress.formats.base import ModelSpec
from compress.formats.errors import UsageError
from compress.formats.options import Among, PerTensor
from compress.passes.choice.allocation import Allocation, best, evenly, priced
from compress.passes.choice.bit_budget import Allocations, Unit, spread, tied_modules
from compress.passes.choice.chooser import Choice
from compress.passes.choice.sensitivity import Trials
from compress.passes.core.base import LayerPass
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.anatomy import Anatomy
from compress.passes.prune import Prune

_MOST = 0.9  # of the way to all zeros, or to none


class Chosen(Committed):
    """The choice: which part of each module becomes zero, and what that costs on the calibration sequences."""

    shares: Mapping[str, float]
    kl_divergence: float


class Spread(Allocation):
    """Choose how much of each layer the `prune` right after it makes zero, by measured loss: more where it costs less.

    It takes the place of that pass's `sparsity`. Layers that share an input get the same part.
    """

    chooses_bits: ClassVar[bool] = False

    sparsity: float = Field(gt=0, lt=1, description="which part of all weights together becomes zero")
    within: float = Field(0.2, gt=0, lt=1, description="how far a layer may be from it, to either side")

    def shares(self) -> tuple[float, ...]:
        """The candidates: most zeros first, for they take least."""
        more, fewer = (min(self.within, _MOST * room) for room in (1 - self.sparsity, self.sparsity))
        steps = (more, more / 2, 0.0, -fewer / 2, -fewer)
        return tuple(self.sparsity + step for step in steps)

    def attempts(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[LayerPass]:
        return list(self._attempts(self._pruner(steps)).values())

    def largest(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        return [dict.fromkeys(self._pruner(steps).targets(anatomy), self.sparsity)]

    def even(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        return self.largest(steps, model, anatomy)

    def give(self, step: LayerPass, choice: Choice) -> LayerPass:
        return step.with_shares(choice)

    def model(self, run: Run, stage: Stage) -> Outcome:
        pruner, anatomy = self._pruner(stage.following), run.skeleton.anatomy
        modules = pruner.targets(anatomy)
        units = [self._unit(names, run.model.spec) for names in tied_modules(anatomy, modules)]
        trials = Trials(run, stage, self._attempts(pruner), modules)
        if not run.journal.of(Chosen, stage.key):
            with torch.no_grad():
                trials.measure()
                run.journal.append(self._choose(units, trials))
        trials.clear()
        (choice,) = run.journal.of(Chosen, stage.key)
        least, most = min(choice.shares.values()), max(choice.shares.values())
        run.reporter.note(f"spread: {100 * least:g} to {100 * most:g} % of a layer, {100 * self.sparsity:g} % of all")
        return Outcome(shares=choice.shares, manifest={"spread": choice.model_dump(exclude={"stage"})})

    def _pruner(self, steps: Sequence[LayerPass]) -> Prune:
        """The `prune` that leaves open how much. Raises UsageError if there is none."""
        found = [step for step in steps if isinstance(step, Prune)]
        if not found:
            raise UsageError(
                "spread chooses how much the prune right after it makes zero, and there is none",
                "put `- prune: {}` there",
            )
        said = found[0].model_fields_set & {"sparsity", "pattern"}
        if said and not _is_chosen(found[0].sparsity):
            raise UsageError(f"prune says its {min(said)}, and spread is to choose", f"leave {min(said)} out of prune")
        return found[0]

    def _attempts(self, pruner: Prune) -> dict[float, LayerPass]:
        plain = {"method": "wanda", "solve": False, "swap": False, "correct": False}
        return {share: pruner.model_copy(update={**plain, "sparsity": share}) for share in self.shares()}

    def _unit(self, names: tuple[str, ...], model: ModelSpec) -> Unit:
        """What stays at each candidate, in weights."""
        sizes = [model.tensors[f"{name}.weight"].size for name in names]
        return Unit(
            names, sum(sizes), tuple(sum(round(size * (1 - share)) for size in sizes) for share in self.shares())
        )

    def _choose(self, units: Sequence[Unit], trials: Trials) -> Chosen:
        judge = trials.judge(units, self.shares(), self.samples)
        most = sum(unit.costs[self.shares().index(self.sparsity)] for unit in units)
        even = evenly(units, most)
        allocations = Allocations(units, priced(units, trials.errors(units), even[0], judge), most)
        chosen, divergence = best([allocations.at(allocations.levels), even], judge)
        shares = spread(units, chosen, self.shares())
        return Chosen(stage=trials.stage.key, shares=shares, kl_divergence=divergence)


def _is_chosen(sparsity: PerTensor[float]) -> bool:
    """Whether it is what `spread` itself gave: a plan asks once more then."""
    return isinstance(sparsity, tuple) and any(isinstance(rule, Among) for rule in sparsity)
