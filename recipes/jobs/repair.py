"""A recipe carried out until its gates hold: what costs most gets more bits, or a wider type, round by round.

Every round is a trial of the recipe with more for some modules, without its exports: stages that the change does not
touch are found done, and so is the last trial when the artifacts are written. What is raised is the choice of fewest
bits whose errors are predicted to be few enough, by the prices of the round before (passes/choice/prices.py): a bit
more is a fourth of the error. Bits that `mixed` or `fit` chose are what the first round raises.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.passes.choice.bit_budget import Allocations, Unit, average
from compress.passes.choice.ladder import Ladder
from compress.passes.choice.prices import Price, Prices
from compress.passes.core.base import Rung
from compress.passes.core.report import Reporter
from compress.recipes.figures.cards import allowed_on
from compress.recipes.gates.limits import error_left, figures_of
from compress.recipes.opening import Outlined, outline_recipe
from compress.recipes.plan import ROUNDS, fitting_rungs, planned_bytes
from compress.recipes.recipe import Recipe, with_steps
from compress.recipes.report import RunReport
from compress.recipes.run import run as run_once
from compress.recipes.stages import chooses_bits

_BIT = 4.0
"""How many times the energy of errors with one bit less is that with one more."""


def run(
    recipe: Recipe, output: Path, *, fresh: bool = False, reporter: Reporter | None = None, **options: Any
) -> RunReport:
    """`recipes.run.run`, and if the recipe says `repair: true`, with more bits as long as its gates are missed.

    The report says in `repairs` what was done. Raises what `recipes.run.run` does.
    """
    reporter = reporter or Reporter()
    if not recipe.gates.repair:
        return run_once(recipe, output, fresh=fresh, reporter=reporter, **options)
    report = run_once(recipe, output, fresh=fresh, reporter=reporter, trial=(), **options)
    said: list[str] = []
    repair: Repair | None = None
    while (left := _error_left(recipe, report)) is not None and len(said) < ROUNDS:
        report = run_once(recipe, output, reporter=reporter, trial=(Prices(),), **options)
        repair = repair or Repair.of(recipe, report.bits, _allowed(**options), reporter)
        chosen = repair.choose(report.prices, left if len(said) < ROUNDS - 1 else 0.0)
        if chosen is None:
            break
        recipe, opened = chosen.recipe, replace(repair.opened, recipe=chosen.settled)
        repair = replace(repair, recipe=recipe, opened=opened)
        said.append(f"repair {len(said) + 1}: {'; '.join(report.missed)}; {chosen.told}")
        reporter.note(said[-1])
        report = run_once(recipe, output, reporter=reporter, trial=(), **options)
    if report.missed:
        said.append(f"repair ends: {'; '.join(report.missed)}, and {_end(repair, len(said))}")
        reporter.note(said[-1])
    return run_once(recipe, output, reporter=reporter, **options).model_copy(update={"repairs": said})


def _allowed(device: str = "cpu", max_ram: int | None = None, max_vram: int | None = None, **_: Any) -> int:
    """The memory that the rounds may take."""
    return allowed_on(torch.device(device), max_ram, max_vram)


def _error_left(recipe: Recipe, report: RunReport) -> float | None:
    return error_left(recipe.gates, figures_of(report.metrics.model_dump()))


def _end(repair: Repair | None, rounds: int) -> str:
    if rounds == ROUNDS:
        return f"{ROUNDS} rounds are done"
    limit = repair.ceiling[1] if repair else ""
    return f"no module can be raised: {f'{limit} allows' if limit else 'containers hold'} no more"


@dataclass(frozen=True)
class Raised:
    """What a round changes: the recipe as it was written, and settled, with more for some modules."""

    recipe: Recipe
    settled: Recipe
    told: str


@dataclass(frozen=True)
class Repair:
    """`opened` is the recipe with its options settled for the model; modules can be raised to `rungs`.

    `ceiling` is how many bytes the largest artifact may have, and what says so.
    """

    recipe: Recipe
    opened: Outlined
    rungs: Sequence[Rung]
    max_ram: int
    ceiling: tuple[int, str]

    @classmethod
    def of(cls, recipe: Recipe, bits: Mapping[str, Rung], max_ram: int, reporter: Reporter) -> Repair:
        """Opens what the recipe names once more, for its headers; `bits` are those that a stage of it chose."""
        reporter.tell("looking for what can be raised")
        opened = outline_recipe(recipe, Reporter(), None)
        ceiling = opened.ceiling
        if bits:
            opened = outline_recipe(_decided(opened, bits), Reporter(), None)
        return cls(opened.written, opened, fitting_rungs(opened, max_ram), max_ram, ceiling)

    def choose(self, prices: Sequence[Price], left: float) -> Raised | None:
        """The fewest bits with which `left` of the present error may be expected to stay, within the gate on size.

        None if nothing can be raised.
        """
        ladder = Ladder(self.opened.recipe.passes, self.opened.model.anatomy)
        ways = [(price, way) for price in prices if (way := self._way(ladder, price))]
        depth = max((len(way) for _, way in ways), default=1)
        if depth < 2:
            return None
        full = [[*way, *[way[-1]] * (depth - len(way))] for _, way in ways]
        units = [_unit(ladder, price, way) for (price, _), way in zip(ways, full)]
        errors = torch.stack([_errors(unit, price.cost) for unit, (price, _) in zip(units, ways)])
        fixed = sum(price.cost for price in prices) - float(errors[:, 0].sum())
        enough = left * (fixed + float(errors[:, 0].sum())) - fixed
        allocations = Allocations(units, errors, sum(unit.costs[-1] for unit in units))

        def rungs(level: int) -> dict[str, Rung]:
            raised = ((way, at) for way, at in zip(full, allocations.at(level)) if at)
            return {name: rung for way, at in raised for name, rung in way[at].items()}

        def fits(level: int) -> bool:
            passes = ladder.raised(self.opened.recipe.passes, rungs(level))
            return planned_bytes(self.opened, passes, self.max_ram) <= self.ceiling[0]

        level = _first(allocations.levels, lambda level: _predicted(errors, allocations.at(level)) <= enough)
        if not fits(level):
            level = _first(level, lambda level: not fits(level)) - 1
        if level < 0 or not rungs(level):
            return None
        before, after = average(units, [0] * len(units)), average(units, allocations.at(level))
        return self._raised(ladder, rungs(level), f"{before:.3f} → {after:.3f} bits per weight where it can be raised")

    def _way(self, ladder: Ladder, price: Price) -> list[dict[str, Rung]]:
        """What the modules of a unit may get, from what they have upwards; empty for those that cannot be raised."""
        above = {name: ladder.above(name) for name in price.modules}
        open_ones = {name: [rungs[0], *(rung for rung in rungs[1:] if rung in self.rungs)]
                     for name, rungs in above.items() if rungs}  # fmt: skip
        steps = max(map(len, open_ones.values()), default=0)
        return [{name: rungs[min(at, len(rungs) - 1)] for name, rungs in open_ones.items()} for at in range(steps)]

    def _raised(self, ladder: Ladder, rungs: Mapping[str, Rung], told: str) -> Raised:
        kinds = Counter(rungs.values())
        said = ", ".join(f"{count} to {_spelled(rung)}" for rung, count in sorted(kinds.items(), key=str))
        written, settled = (each.model_copy(update={"passes": ladder.raised(each.passes, rungs)})
                            for each in (self.recipe, self.opened.recipe))  # fmt: skip
        return Raised(written, settled, f"modules raised: {said}; {told}")


def _decided(opened: Outlined, bits: Mapping[str, Rung]) -> Recipe:
    """The recipe as it was written, with the bits that a stage of it chose, by module, in that stage's stead."""
    ladder, written = Ladder(opened.recipe.passes, opened.model.anatomy), opened.written
    steps = enumerate(ladder.raised(written.passes, bits))
    return with_steps(written, {number: step for number, step in steps if not chooses_bits(step)})


def _spelled(rung: Rung) -> str:
    return f"{rung} bits" if isinstance(rung, int) else rung


def _unit(ladder: Ladder, price: Price, way: Sequence[Mapping[str, Rung]]) -> Unit:
    sizes = {name: rows * columns for name, (rows, columns) in price.modules.items() if name in way[0]}
    costs = (
        sum(
            ladder.number_format(name, rung).bits_per_weight(price.modules[name]) * sizes[name]
            for name, rung in step.items()
        )
        for step in way
    )
    return Unit(tuple(sizes), sum(sizes.values()), tuple(map(round, costs)))


def _errors(unit: Unit, cost: float) -> Tensor:
    """[candidates] fp64: what is left of `cost` with the bits of each candidate."""
    more = [(bits - unit.costs[0]) / unit.weights for bits in unit.costs]
    return torch.tensor([cost * _BIT**-bits for bits in more], dtype=torch.float64)


def _predicted(errors: Tensor, chosen: Sequence[int]) -> float:
    return sum(float(row[at]) for row, at in zip(errors, chosen))


def _first(last: int, holds: Callable[[int], bool]) -> int:
    """The first of 0 … `last` that holds, where all after it do, too; `last` if none before it does."""
    return bisect_left(range(last), True, key=holds)
