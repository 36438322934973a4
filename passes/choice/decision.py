"""Which choice it is to be: the least loss within a budget, or the smallest budget within a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compress.formats.errors import RefusedError
from compress.passes.choice.allocation import best, evens, priced, repriced
from compress.passes.choice.bit_budget import Allocations, Judge, average, spent
from compress.passes.choice.menu import Menu

BISECTIONS = 8
Mixes = Mapping[str, Sequence[int]]
"""llama.cpp's mixes, by its names: a choice each."""


class Decision(NamedTuple):
    """The index of a candidate for every unit, its KL divergence, and how that stands beside llama.cpp's mixes."""

    chosen: list[int]
    divergence: float
    compared: str = ""


def decided(
    menu: Menu, errors: Tensor, judge: Judge, most: int, limit: float | None, mixes: Mixes | None = None
) -> Decision:
    """The choice of at most so many bits with the least KL that is found, or the one of fewest bits within `limit`.

    `errors` [units, candidates] fp64. With `mixes` they are priced once more about what was found first, and those
    mixes are choices, too. Raises RefusedError if nothing is within the limit.
    """
    units, even = menu.units, evens(menu.units, most)
    prices = priced(units, errors, even[-1][0], judge, crossed=mixes is not None)
    allocations = Allocations(units, prices, most)
    if limit is not None:
        chosen, divergence = _fewest(allocations, judge, limit)
    else:
        chosen, divergence = best([allocations.at(allocations.levels), *even], judge)
    if mixes is None:
        return Decision(chosen, divergence)
    mix = _largest(menu, mixes, spent(units, chosen) if limit is not None else most)
    if limit is None:
        allocations = Allocations(units, repriced(units, prices, chosen, judge, crossed=True), most)
        others = [list(mixes[mix])] if mix else []
        chosen, divergence = best([chosen, allocations.at(allocations.levels), *others], judge)
    return Decision(chosen, divergence, _beside(menu, mix, mixes[mix], allocations, judge) if mix else "")


def fullest(menu: Menu, most: int, mixes: Mixes) -> list[int]:
    """A choice that takes as many bits as any that `decided` may find."""
    units = menu.units
    allocations = Allocations(units, -torch.tensor([unit.costs for unit in units], dtype=torch.float64), most)
    mix = _largest(menu, mixes, most)
    choices = [allocations.at(allocations.levels), *evens(units, most), *([list(mixes[mix])] if mix else [])]
    return max(choices, key=lambda chosen: spent(units, chosen))


def _largest(menu: Menu, mixes: Mixes, most: int) -> str | None:
    """The mix that takes most, of those within the budget."""
    within = [label for label, chosen in mixes.items() if spent(menu.units, chosen) <= most]
    return max(within, key=lambda label: spent(menu.units, mixes[label]), default=None)


def _beside(menu: Menu, label: str, mix: Sequence[int], allocations: Allocations, judge: Judge) -> str:
    """What is said of a mix and the best choice at its own bytes."""
    chosen = allocations.within(spent(menu.units, mix))
    theirs, ours, bits = judge(mix), judge(chosen), f"{average(menu.units, mix):.3f} bits per weight"
    if chosen == list(mix):
        return f"at the {bits} of {label} that is the choice: KL {theirs:.4g}"
    if ours < theirs:
        return f"at the {bits} of {label} KL is {ours:.4g}, and {theirs:.4g} with that"
    return f"{label} is not beaten at its own {bits}: KL {theirs:.4g}, and {ours:.4g} with other choices"


def _fewest(allocations: Allocations, judge: Judge, limit: float) -> tuple[list[int], float]:
    """The choice of the smallest budget found to keep KL at `limit` or below. Raises RefusedError.

    By bisection, which asks of different choices only, and ends where no tensor's candidates lie as close as budgets.
    """
    above, level = -1, allocations.levels
    if (divergence := judge(allocations.at(level))) > limit:
        raise RefusedError(
            f"mixed: all the bits allowed give a KL divergence of {divergence:.4g}, and max_kl is {limit:g}",
            "allow more bits or smaller groups, or raise max_kl",
        )
    chosen, asked = allocations.at(level), 0
    while asked < BISECTIONS and level - above > 1 and (level - above) * allocations.quantum >= allocations.finest:
        middle = (above + level) // 2
        if (tried := allocations.at(middle)) == chosen:
            level = middle
            continue
        asked += 1
        if (found := judge(tried)) <= limit:
            level, chosen, divergence = middle, tried, found
        else:
            above = middle
    return chosen, divergence
