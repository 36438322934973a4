"""Bits per tensor, chosen from what each would cost: the fewest bits, or the least loss, for the whole model.

Every linear is tried at every candidate with the pass that follows. The error energy of its outputs over their
energy, tr(E·H·Eᵀ) / tr(W·H·Wᵀ), says what a candidate costs; the choice of least sum under the budget is a
multiple-choice knapsack (Kellerer et al., Knapsack Problems, 2004, ch. 11). The sum only ranks choices: what is
chosen is judged by the KL divergence of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.effort import Effort
from compress.kernels.numbers.int import IntFormat
from compress.passes.choice.bit_budget import Allocations, Unit, average, largest_choices, spread, tied_modules
from compress.passes.choice.chooser import Choice, Chooser
from compress.passes.choice.sensitivity import Trials
from compress.passes.core.base import LayerPass
from compress.passes.core.journal import Committed
from compress.passes.core.linear import LinearPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.processes import ALONE, Crew
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost import Cost, Extent, score_effort, walk_cost
from compress.passes.model.anatomy import Anatomy, kind_of
from compress.passes.options.integers import Bits
from compress.passes.sweep.cost import gather_effort, rewrite_effort

_BISECTIONS = 8
_PROBES = 13  # four sorts of linears in three thirds of the layers, and none of them


class Chosen(Committed):
    """The choice: bits by module, their average with scales, and what it costs on the calibration sequences."""

    bits: Mapping[str, int]
    average_bits: float
    kl_divergence: float


class Mixed(Chooser):
    """Choose the bits of each linear layer for the pass right after it (`gptq`, `rtn`, `awq`), by measured loss.

    It takes the place of that pass's `bits`; modules that a rule there matches keep theirs, and do not count.
    Layers that engines join get the same bits: q/k/v, gate/up, the experts of a layer.
    """

    calibrated: ClassVar[bool] = True

    average_bits: float | None = Field(
        None, gt=0, le=16, description="bits per weight, scales included, on average at most"
    )
    max_kl: float | None = Field(
        None, gt=0, description="take the fewest bits whose KL divergence on calibration sequences is at most this"
    )
    bits: tuple[Bits, ...] = Field((2, 3, 4, 8), min_length=2, description="the candidates, ascending")
    samples: int = Field(16, ge=1, le=1 << 20, description="calibration sequences that KL is measured on")

    @field_validator("bits")
    @classmethod
    def _ascending(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if list(bits) != sorted(set(bits)):
            raise ValueError("the candidates must ascend, as in [2, 3, 4, 8]")
        return bits

    @model_validator(mode="after")
    def _has_an_aim(self) -> Self:
        if self.average_bits is None and self.max_kl is None:
            raise ValueError("say average_bits (as 3.5), or max_kl (as 0.05), or both")
        return self

    @property
    def _checks(self) -> int:
        """How often KL is measured, at most."""
        return _PROBES + (2 if self.max_kl is None else 1 + _BISECTIONS)

    def largest(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        units = self._units(self._solver(steps), model, anatomy)
        return [spread(units, chosen, self.bits) for chosen in largest_choices(units, self._most(units))]

    def even(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        units = self._units(self._solver(steps), model, anatomy)
        return [spread(units, [at] * len(units), self.bits) for at in range(len(self.bits))]

    def cost(
        self,
        model: ModelSpec,
        anatomy: Anatomy,
        sequences: Extent,
        budget: int,
        following: Sequence[LayerPass] = (),
        crew: Crew = ALONE,
    ) -> Cost:
        solver, judged = self._solver(following), (min(self.samples, sequences[0]), sequences[1])
        walk = walk_cost(model, anatomy, sequences, budget, statistics=True)
        check = walk_cost(model, anatomy, judged, budget).effort + score_effort(model, anatomy, judged, 2)
        trials = Effort()
        for bits in self.bits:
            trials += rewrite_effort([solver.with_bits(dict.fromkeys(anatomy.linears, bits))], model, anatomy)
        gathered = gather_effort([solver], model, anatomy, sequences)
        return replace(walk, effort=walk.effort + gathered + trials + check * self._checks)

    def model(self, run: Run, stage: Stage) -> Outcome:
        solver = self._solver(stage.following)
        units = self._units(solver, run.model.spec, run.skeleton.anatomy)
        modules = frozenset(name for unit in units for name in unit.modules)
        trials = Trials(run, stage, solver, modules, self.bits)
        if not run.journal.of(Chosen, stage.key):
            with torch.no_grad():
                trials.measure()
                run.journal.append(self._choose(units, trials))
        trials.clear()
        (choice,) = run.journal.of(Chosen, stage.key)
        said = f"{choice.average_bits:.3f} bits per weight, KL {choice.kl_divergence:.4g} on calibration sequences"
        run.reporter.note(f"mixed: {said}")
        return Outcome(bits=choice.bits, manifest={"mixed": choice.model_dump(exclude={"stage"})})

    def _solver(self, steps: Sequence[LayerPass]) -> LinearPass:
        """The pass that decides the codes: the last of `steps` that takes bits."""
        found = [step for step in steps if isinstance(step, LinearPass) and "bits" in type(step).model_fields]
        if not found:
            raise UsageError("mixed chooses bits for the pass right after it, and none there takes bits",
                             "put the pass behind it, as `- gptq: {group_size: 64}`")  # fmt: skip
        return found[-1]

    def _units(self, solver: LinearPass, model: ModelSpec, anatomy: Anatomy) -> list[Unit]:
        """The modules whose bits are to be chosen, and what they cost at each candidate."""
        unsaid = [name for name in anatomy.linears if solver.leaves_open(name)]
        steps = [solver.with_bits(dict.fromkeys(unsaid, bits)) for bits in self.bits]
        modules = steps[0].targets(anatomy) & set(unsaid)
        if not modules:
            raise UsageError(
                f"{solver.name} leaves no bits for mixed to choose", f"leave rules for `bits` out of {solver.name}"
            )
        return [_unit(names, steps, model) for names in tied_modules(anatomy, modules)]

    def _most(self, units: Sequence[Unit]) -> int:
        """The bits that all modules may take together."""
        weights, least = sum(unit.weights for unit in units), sum(unit.costs[0] for unit in units)
        if self.average_bits is None:
            return sum(unit.costs[-1] for unit in units)
        if (most := int(self.average_bits * weights)) < least:
            raise RefusedError(
                f"mixed: {self.bits[0]} bits everywhere already take {least / weights:.3f} bits per weight with "
                f"their scales, and average_bits is {self.average_bits:g}",
                "raise average_bits, use larger groups, or give fewer bits among the candidates",
            )
        return most

    def _choose(self, units: Sequence[Unit], trials: Trials) -> Chosen:
        judged: list[float] = []

        def judge(chosen: Sequence[int]) -> float:
            judged.append(trials.divergence(len(judged), spread(units, chosen, self.bits), self.samples))
            return judged[-1]

        allocations = Allocations(units, self._priced(units, trials.errors(units), judge), self._most(units))
        if self.max_kl is None:
            chosen, divergence = _best([allocations.at(allocations.levels), self._evenly(units)], judge)
        else:
            chosen, divergence = _fewest(allocations, judge, self.max_kl)
        bits = spread(units, chosen, self.bits)
        return Chosen(stage=trials.stage.key, bits=bits, average_bits=average(units, chosen), kl_divergence=divergence)

    def _priced(self, units: Sequence[Unit], errors: Tensor, judge: Callable[[Sequence[int]], float]) -> Tensor:
        """Errors [units, candidates] in KL: times what those of each sort of unit cost when it alone has fewer bits.

        An error in one place costs many times what it does in another, and that no layer can tell by itself.
        """
        most = len(self.bits) - 1
        fewer = min(self._evenly(units)[0], most - 1)
        sorts = _sorts(units)
        spotless = judge([most] * len(units))
        for sort in dict.fromkeys(sorts):
            members = [number for number, found in enumerate(sorts) if found == sort]
            cost = judge([fewer if found == sort else most for found in sorts]) - spotless
            caused = float((errors[members, fewer] - errors[members, most]).sum())
            errors[members] *= abs(cost) / caused if caused > 0 else 1.0  # a gain is noise of that size
        return errors

    def _evenly(self, units: Sequence[Unit]) -> list[int]:
        """The same bits everywhere, as many as the budget allows: errors add up to KL only about."""
        most = self._most(units)
        fitting = [at for at in range(len(self.bits)) if sum(unit.costs[at] for unit in units) <= most]
        return [fitting[-1]] * len(units)


def _unit(names: tuple[str, ...], steps: Sequence[LinearPass], model: ModelSpec) -> Unit:
    shapes = {name: model.tensors[f"{name}.weight"].shape for name in names}
    formats = [{name: step.number_format(name) for name in names} for step in steps]
    if not all(isinstance(found, IntFormat) for chosen in formats for found in chosen.values()):
        raise UsageError(f"{names[0]} is not to have an integer grid: mixed has no bits to choose for it",
                         f"say `format: int`, or leave it out: skip: [{names[0]}]")  # fmt: skip
    costs = [
        sum(round(found.bits_per_weight(shapes[name]) * _size(shapes[name])) for name, found in chosen.items() if found)
        for chosen in formats
    ]
    return Unit(names, sum(map(_size, shapes.values())), tuple(costs))


def _sorts(units: Sequence[Unit]) -> list[tuple[str, int]]:
    """What each unit is, and in which third of the layers it lies."""
    kinds = [kind_of(unit.modules[0]) for unit in units]
    return [(kind, 3 * kinds[:number].count(kind) // kinds.count(kind)) for number, kind in enumerate(kinds)]


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1]


def _best(choices: Sequence[list[int]], judge: Callable[[Sequence[int]], float]) -> tuple[list[int], float]:
    """Of the different ones among `choices`, the one of least KL."""
    different = [chosen for at, chosen in enumerate(choices) if chosen not in choices[:at]]
    judged = [judge(chosen) for chosen in different]
    return different[judged.index(min(judged))], min(judged)


def _fewest(allocations: Allocations, judge: Callable[[Sequence[int]], float], limit: float) -> tuple[list[int], float]:
    """The choice of the smallest budget found to keep KL at `limit` or below: bisection. Raises RefusedError."""
    above, level = -1, allocations.levels
    if (divergence := judge(allocations.at(level))) > limit:
        raise RefusedError(
            f"mixed: all the bits allowed give a KL divergence of {divergence:.4g}, and max_kl is {limit:g}",
            "allow more bits or smaller groups, or raise max_kl",
        )
    for _ in range(_BISECTIONS):
        if level - above <= 1:
            break
        middle = (above + level) // 2
        if (found := judge(allocations.at(middle))) <= limit:
            level, divergence = middle, found
        else:
            above = middle
    return allocations.at(level), divergence
