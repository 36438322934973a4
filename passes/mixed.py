"""Bits per tensor, chosen from what each would cost: the fewest bits, or the least loss, for the whole model.

Every linear is tried at every number of bits with the pass that follows: choice/allocation.py says how they compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from pydantic import Field, field_validator, model_validator

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.numbers.int import IntFormat
from compress.passes.choice.allocation import PROBES, Allocation, best, evenly, priced
from compress.passes.choice.bit_budget import Allocations, Unit, average, largest_choices, spread, tied_modules
from compress.passes.choice.chooser import Choice
from compress.passes.choice.sensitivity import Trials
from compress.passes.core.base import LayerPass
from compress.passes.core.journal import Committed
from compress.passes.core.linear import LinearPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.anatomy import Anatomy
from compress.passes.options.integers import Bits

_BISECTIONS = 8


class Chosen(Committed):
    """The choice: bits by module, their average with scales, and what it costs on the calibration sequences."""

    bits: Mapping[str, int]
    average_bits: float
    kl_divergence: float


class Mixed(Allocation):
    """Choose the bits of each linear layer for the pass right after it (`gptq`, `rtn`, `awq`), by measured loss.

    It takes the place of that pass's `bits`; modules that a rule there matches keep theirs, and do not count.
    Layers that engines join get the same bits: q/k/v, gate/up, the experts of a layer.
    """

    average_bits: float | None = Field(
        None, gt=0, le=16, description="bits per weight, scales included, on average at most"
    )
    max_kl: float | None = Field(
        None, gt=0, description="take the fewest bits whose KL divergence on calibration sequences is at most this"
    )
    bits: tuple[Bits, ...] = Field((2, 3, 4, 8), min_length=2, description="the candidates, ascending")

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

    def checks(self) -> int:
        return super().checks() if self.max_kl is None else PROBES + 1 + _BISECTIONS

    def attempts(self, steps: Sequence[LayerPass], anatomy: Anatomy) -> list[LayerPass]:
        solver = self._solver(steps)
        return [solver.with_bits(dict.fromkeys(anatomy.linears, bits)) for bits in self.bits]

    def largest(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        units = self._units(self._solver(steps), model, anatomy)
        return [spread(units, chosen, self.bits) for chosen in largest_choices(units, self._most(units))]

    def even(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        units = self._units(self._solver(steps), model, anatomy)
        return [spread(units, [at] * len(units), self.bits) for at in range(len(self.bits))]

    def model(self, run: Run, stage: Stage) -> Outcome:
        solver = self._solver(stage.following)
        units = self._units(solver, run.model.spec, run.skeleton.anatomy)
        modules = frozenset(name for unit in units for name in unit.modules)
        steps: dict[float, LayerPass] = {bits: solver.with_bits(dict.fromkeys(modules, bits)) for bits in self.bits}
        trials = Trials(run, stage, steps, modules)
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
        judge = trials.judge(units, self.bits, self.samples)
        most = self._most(units)
        allocations = Allocations(units, priced(units, trials.errors(units), evenly(units, most)[0], judge), most)
        if self.max_kl is None:
            chosen, divergence = best([allocations.at(allocations.levels), evenly(units, most)], judge)
        else:
            chosen, divergence = _fewest(allocations, judge, self.max_kl)
        bits = spread(units, chosen, self.bits)
        return Chosen(stage=trials.stage.key, bits=bits, average_bits=average(units, chosen), kl_divergence=divergence)


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


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[1]


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
