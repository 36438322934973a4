"""Bits, or types, for modules: which must be equal, what they cost, and which choice errs least for its cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor

from compress.passes.model.anatomy import Anatomy, kind_of

_LEVELS = 1 << 14
T = TypeVar("T")
Judge = Callable[[Sequence[int]], float]
"""KL of a choice: the index of a candidate for every unit."""


@dataclass(frozen=True)
class Unit:
    """Modules that get the same candidate: `costs` are their bits in all at each, scales included.

    Candidates of all units together take the less the earlier they come; one unit's need not.
    """

    modules: tuple[str, ...]
    weights: int
    costs: tuple[int, ...]


def tied_modules(anatomy: Anatomy, modules: Collection[str]) -> Iterator[tuple[str, ...]]:
    """`modules`, those together that an engine joins into one matrix or runs as one stack.

    That is linears that share an input (q/k/v, gate/up), and all experts of a layer: what lies in one numbered list.
    """
    for layer in anatomy.layers:
        tied: dict[str, list[str]] = {}
        for siblings in layer.siblings:
            if names := [name for name in siblings if name in modules]:
                tied.setdefault(_list_of(names[0], layer.name) or names[0], []).extend(names)
        yield from map(tuple, tied.values())


def stacked_modules(anatomy: Anatomy, modules: Collection[str]) -> Iterator[tuple[str, ...]]:
    """`modules`, those together that GGUF has in one tensor: the experts' matrices of one sort in a layer."""
    for layer in anatomy.layers:
        stacks: dict[str, list[str]] = {}
        for name in (name for siblings in layer.siblings for name in siblings if name in modules):
            stacks.setdefault(kind_of(name), []).append(name)
        yield from map(tuple, stacks.values())


def _list_of(module: str, layer: str) -> str | None:
    """The list within a layer that holds the module under a number; None if none does."""
    steps = module.removeprefix(f"{layer}.").split(".")
    return next((".".join(steps[:at]) for at, step in enumerate(steps) if step.isdigit()), None)


class Allocations:
    """The choice of least summed error for every budget: the multiple-choice knapsack, by dynamic programming.

    `errors` [units, candidates] fp64. Budgets count in `quantum` bits above `least`, what the cheapest choice
    takes. They are exact where the costs' greatest common divisor allows it (sizes of matrices have large ones);
    else each cost is rounded up to a 2^−14 part of the range up to `most`, so no budget is ever exceeded. `finest` is
    the fewest bits that lie between two candidates of one unit.
    """

    def __init__(self, units: Sequence[Unit], errors: Tensor, most: int) -> None:
        self.least = sum(min(unit.costs) for unit in units)
        above = [[cost - min(unit.costs) for cost in unit.costs] for unit in units]
        room = max(0, min(most, sum(max(unit.costs) for unit in units)) - self.least)
        exact = math.gcd(*(step for steps in above for step in steps)) or 1
        self.quantum = exact if room // exact <= _LEVELS else -(-room // _LEVELS)
        self.levels = room // self.quantum
        self._steps = [[-(-step // self.quantum) for step in steps] for steps in above]
        self.finest = min((abs(a - b) for steps in above for a, b in combinations(steps, 2) if a != b), default=0)
        self._choices = self._solve(errors)

    def at(self, level: int) -> list[int]:
        """The best choice within `least` + level · quantum bits: the index of a candidate for every unit."""
        chosen = []
        for steps, choices in zip(reversed(self._steps), reversed(self._choices)):
            chosen.append(int(choices[level]))
            level -= steps[chosen[-1]]
        return chosen[::-1]

    def within(self, bits: int) -> list[int]:
        """The best choice that takes at most so many bits, which the cheapest one takes at least."""
        return self.at(min(self.levels, (bits - self.least) // self.quantum))

    def _solve(self, errors: Tensor) -> list[Tensor]:
        """For every unit, its best candidate at each level [levels + 1], the units before it included."""
        best = torch.zeros(self.levels + 1, dtype=torch.float64)
        choices = []
        for steps, costs in zip(self._steps, errors):
            totals = torch.full((len(steps), self.levels + 1), math.inf, dtype=torch.float64)
            for candidate, step in enumerate(steps):
                if step <= self.levels:
                    totals[candidate, step:] = best[: self.levels + 1 - step] + costs[candidate]
            best, choice = totals.min(0)
            choices.append(choice.to(torch.uint8))
        return choices


def largest_choices(units: Sequence[Unit], most: int) -> list[list[int]]:
    """Choices of which, in any container, one takes at least the bytes of every choice of at most `most` bits.

    The most bytes for a budget lie on a mixture of two candidates, whatever bytes a container makes of each: the
    optimum of a linear programme with one constraint. Each mixture here is over the budget, by less than a step.
    """
    totals = [sum(costs) for costs in zip(*(unit.costs for unit in units))]
    if most >= totals[-1]:
        return [[at] * len(units) for at in range(len(totals))]
    over = range(sum(total <= most for total in totals), len(totals))
    return [_mixture(units, most, low, high) for high in over for low in range(over.start)]


def _mixture(units: Sequence[Unit], most: int, low: int, high: int) -> list[int]:
    total = sum(unit.costs[low] for unit in units)
    chosen = []
    for unit in units:
        chosen.append(high if total <= most else low)
        total += unit.costs[chosen[-1]] - unit.costs[low]
    return chosen


def cached(judge: Judge) -> Judge:
    """`judge`, asked but once about each choice."""
    known: dict[tuple[int, ...], float] = {}

    def judged(chosen: Sequence[int]) -> float:
        if (key := tuple(chosen)) not in known:
            known[key] = judge(chosen)
        return known[key]

    return judged


def spread(units: Sequence[Unit], chosen: Sequence[int], candidates: Sequence[T]) -> Mapping[str, T]:
    """A choice as candidates by module name."""
    return {name: candidates[index] for unit, index in zip(units, chosen) for name in unit.modules}


def spent(units: Sequence[Unit], chosen: Sequence[int]) -> int:
    """The bits of a choice in all, scales included."""
    return sum(unit.costs[index] for unit, index in zip(units, chosen))


def average(units: Sequence[Unit], chosen: Sequence[int]) -> float:
    """Bits per weight of a choice, scales included."""
    return spent(units, chosen) / sum(unit.weights for unit in units)
