"""Chooses among candidates for every linear by what each would cost, under a budget for the whole model.

Every linear is tried at every candidate with the pass that follows. The error energy of its outputs over their
energy, tr(E·H·Eᵀ) / tr(W·H·Wᵀ), says what a candidate costs; the choice of least sum under the budget is a
multiple-choice knapsack (Kellerer et al., Knapsack Problems, 2004, ch. 11). The sum only ranks choices: what is
chosen is judged by the KL divergence of the whole model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.passes.choice.bit_budget import Judge, Unit
from compress.passes.choice.chooser import Chooser
from compress.passes.core.base import LayerPass, Setting
from compress.passes.forward.cost import Cost, score_effort, walk_cost
from compress.passes.model.anatomy import Anatomy, kind_of
from compress.passes.sweep.cost import gather_effort, rewrite_effort

PROBES = 13  # four sorts of linears in three thirds of the layers, and none of them


class Allocation(Chooser):
    """Candidates stand in the order of what they take; a choice is the index of one for every unit."""

    calibrated: ClassVar[bool] = True

    samples: int = Field(16, ge=1, le=1 << 20, description="calibration sequences that KL is measured on")

    @abstractmethod
    def attempts(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[LayerPass]:
        """The pass among `steps` that it chooses for, at every candidate for all modules."""

    def checks(self) -> int:
        """How often KL is measured, at most."""
        return PROBES + 2

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences, budget = setting.model, setting.anatomy, setting.sequences, setting.budget
        judged = (min(self.samples, sequences[0]), sequences[1])
        walk = walk_cost(model, anatomy, sequences, budget, statistics=True)
        check = walk_cost(model, anatomy, judged, budget).effort + score_effort(model, anatomy, judged, 2)
        trials = Effort()
        attempts = self.attempts(setting.following, model, anatomy)
        for step in attempts:
            trials += rewrite_effort([step], model, anatomy)
        gathered = gather_effort(attempts[:1], model, anatomy, sequences)
        return replace(walk, effort=walk.effort + gathered + trials + check * self.checks())


def priced(units: Sequence[Unit], errors: Tensor, even: int, judge: Judge) -> Tensor:
    """Errors [units, candidates] in KL: times what those of each sort of unit cost when it alone gets little.

    An error in one place costs many times what it does in another, and that no layer can tell by itself. `even` is
    the candidate that the budget allows for all.
    """
    most = errors.shape[1] - 1
    fewer = min(even, most - 1)
    sorts = sorts_of(units)
    spotless = judge([most] * len(units))
    for sort in dict.fromkeys(sorts):
        members = [number for number, found in enumerate(sorts) if found == sort]
        cost = judge([fewer if found == sort else most for found in sorts]) - spotless
        caused = float((errors[members, fewer] - errors[members, most]).sum())
        errors[members] *= abs(cost) / caused if caused > 0 else 1.0  # a gain is noise of that size
    return errors


def repriced(units: Sequence[Unit], prices: Tensor, chosen: Sequence[int], judge: Judge) -> Tensor:
    """`prices` as they are about a choice: times what goes if each sort of unit alone gets the most.

    What a sort costs beside others that are poor is not what it costs beside others that are good.
    """
    most, found = prices.shape[1] - 1, prices.clone()
    sorts, whole = sorts_of(units), judge(chosen)
    for sort in dict.fromkeys(sorts):
        members = [number for number, each in enumerate(sorts) if each == sort]
        expected = sum(float(prices[number, chosen[number]] - prices[number, most]) for number in members)
        if expected > 0:
            spared = whole - judge([most if each == sort else at for at, each in zip(chosen, sorts)])
            found[members] *= abs(spared) / expected
    return found


def evenly(units: Sequence[Unit], most: int) -> list[int]:
    """The same candidate everywhere, the largest that the budget allows: errors add up to KL only about."""
    return evens(units, most)[-1]


def evens(units: Sequence[Unit], most: int) -> list[list[int]]:
    """`evenly`, and every other candidate that takes as much everywhere: last is the last."""
    totals = [sum(costs) for costs in zip(*(unit.costs for unit in units))]
    largest = max(total for total in totals if total <= most)
    return [[at] * len(units) for at, total in enumerate(totals) if total == largest]


def best(choices: Sequence[list[int]], judge: Judge) -> tuple[list[int], float]:
    """Of the different ones among `choices`, the one of least KL."""
    different = [chosen for at, chosen in enumerate(choices) if chosen not in choices[:at]]
    judged = [judge(chosen) for chosen in different]
    return different[judged.index(min(judged))], min(judged)


def sorts_of(units: Sequence[Unit]) -> list[tuple[str, int]]:
    """What each unit is, and in which third of the layers it lies."""
    kinds = [kind_of(unit.modules[0]) for unit in units]
    return [(kind, 3 * kinds[:number].count(kind) // kinds.count(kind)) for number, kind in enumerate(kinds)]
