"""Chooses among candidates for every linear by what each would cost, under a budget for the whole model.

Every linear is tried at every candidate with the pass that follows. The error energy of its outputs over their
energy, tr(E·H·Eᵀ) / tr(W·H·Wᵀ), says what a candidate costs; the choice of least sum under the budget is a
multiple-choice knapsack (Kellerer et al., Knapsack Problems, 2004, ch. 11). The sum only ranks choices: what is
chosen is judged by the KL divergence of the whole model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.passes.choice.bit_budget import Judge, Unit
from compress.passes.choice.chooser import Chooser
from compress.passes.core.base import LayerPass, Setting
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.logits import score_effort
from compress.passes.forward.cost.passage import Passage
from compress.passes.model.anatomy import Anatomy, kind_of
from compress.passes.sweep.cost import gather_effort, rewrite_effort

Sort = tuple[str, int]
"""The kind of a unit, and the third of the layers that it lies in."""
_ROUNDS, _TINY = 50, 1e-30
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
        walk = Passage(model, anatomy, sequences, statistics=True).cost(budget)
        check = Passage(model, anatomy, judged).cost(budget).effort + score_effort(model, anatomy, judged, 2)
        trials = Effort()
        attempts = self.attempts(setting.following, model, anatomy)
        for step in attempts:
            trials += rewrite_effort([step], model, anatomy)
        gathered = gather_effort(attempts[:1], model, anatomy, sequences)
        return replace(walk, effort=walk.effort + gathered + trials + check * self.checks())


def priced(units: Sequence[Unit], errors: Tensor, even: int, judge: Judge, crossed: bool = False) -> Tensor:
    """Errors [units, candidates] in KL: times what those of each sort of unit cost when it alone gets little.

    An error in one place costs many times what it does in another, and that no layer can tell by itself. `even` is
    the candidate that the budget allows for all; `crossed` as in `sort_costs`.
    """
    most = errors.shape[1] - 1
    fewer = min(even, most - 1)
    sorts, spotless = sorts_of(units), judge([most] * len(units))

    def costs(some: Collection[Sort]) -> float:
        return judge([fewer if found in some else most for found in sorts]) - spotless

    caused = _summed(sorts, (errors[:, fewer] - errors[:, most]).tolist())
    return _times(errors, sorts, caused, sort_costs(caused, costs, crossed))


def repriced(
    units: Sequence[Unit], prices: Tensor, chosen: Sequence[int], judge: Judge, crossed: bool = False
) -> Tensor:
    """`prices` as they are about a choice: times what goes if each sort of unit alone gets the most.

    What a sort costs beside others that are poor is not what it costs beside others that are good.
    """
    most = prices.shape[1] - 1
    sorts, whole = sorts_of(units), judge(chosen)

    def costs(some: Collection[Sort]) -> float:
        return whole - judge([most if found in some else at for at, found in zip(chosen, sorts)])

    spared = [float(prices[number, at] - prices[number, most]) for number, at in enumerate(chosen)]
    expected = _summed(sorts, spared)
    return _times(prices, sorts, expected, sort_costs(expected, costs, crossed))


def sort_costs(
    caused: Mapping[Sort, float], costs: Callable[[Collection[Sort]], float], crossed: bool
) -> dict[Sort, float]:
    """What each sort costs in KL, a gain being noise of that size; `costs` measures several together.

    `caused` is what their errors say. Each is measured by itself; or, `crossed` and where that takes fewer measures,
    all of one kind together and all of one third of the layers: what lies in both is shared out as errors are, until
    both sums are right (iterative proportional fitting: Deming and Stephan, 1940).
    """
    wanted = [sort for sort, error in caused.items() if error > 0]
    kinds, thirds = list(dict.fromkeys(kind for kind, _ in wanted)), list(dict.fromkeys(third for _, third in wanted))
    if not crossed or len(wanted) <= len(kinds) + len(thirds):
        return {sort: abs(costs([sort])) for sort in wanted}
    rows, columns = (
        torch.tensor([abs(costs([sort for sort in wanted if each in sort])) for each in names], dtype=torch.float64)
        for names in (kinds, thirds)
    )
    table = torch.tensor([[max(0.0, caused.get((kind, third), 0.0)) for third in thirds] for kind in kinds]).double()
    for _ in range(_ROUNDS):
        table *= (columns / table.sum(0).clamp(min=_TINY)).unsqueeze(0)
        table *= (rows / table.sum(1).clamp(min=_TINY)).unsqueeze(1)
    return {sort: float(table[kinds.index(sort[0]), thirds.index(sort[1])]) for sort in wanted}


def _summed(sorts: Sequence[Sort], values: Sequence[float]) -> dict[Sort, float]:
    """The sum of each sort's `values`."""
    sums = dict.fromkeys(sorts, 0.0)
    for sort, value in zip(sorts, values):
        sums[sort] += value
    return sums


def _times(prices: Tensor, sorts: Sequence[Sort], said: Mapping[Sort, float], found: Mapping[Sort, float]) -> Tensor:
    """`prices` [units, candidates] times what was found of each sort over what is said of it."""
    factors = [found[sort] / said[sort] if sort in found else 1.0 for sort in sorts]
    return prices * torch.tensor(factors, dtype=prices.dtype).unsqueeze(1)


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


def sorts_of(units: Sequence[Unit]) -> list[Sort]:
    """What each unit is, and in which third of the layers it lies."""
    kinds = [kind_of(unit.modules[0]) for unit in units]
    return [(kind, 3 * kinds[:number].count(kind) // kinds.count(kind)) for number, kind in enumerate(kinds)]
