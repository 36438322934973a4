"""What `mixed` may choose among: bits of an integer grid, or block types of GGUF's, and what each takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compress.formats.base import ModelSpec
from compress.formats.errors import UsageError
from compress.formats.gguf.blocks.substitutes import substitutes_told
from compress.kernels.numbers.int import IntFormat
from compress.passes.choice.bit_budget import Unit, spread, stacked_modules, tied_modules
from compress.passes.core.base import LayerPass, Rung
from compress.passes.core.linear import LinearPass
from compress.passes.model.anatomy import Anatomy


@dataclass(frozen=True)
class Menu:
    """The units, and the candidates of which each gets one, those first that take least in the whole model.

    `steps` is the pass at each candidate for all modules, `gives` what each module then has: the candidate, or its
    substitute, which are told in `notes`.
    """

    units: tuple[Unit, ...]
    candidates: tuple[Rung, ...]
    steps: Mapping[Rung, LayerPass]
    gives: Mapping[Rung, Mapping[str, Rung]]
    notes: tuple[str, ...] = field(default=())

    @property
    def modules(self) -> frozenset[str]:
        """Those that are chosen for."""
        return frozenset(name for unit in self.units for name in unit.modules)

    def given(self, chosen: Sequence[int]) -> dict[str, Rung]:
        """What each module has with a choice: the index of a candidate for every unit."""
        return {name: self.gives[rung][name] for name, rung in spread(self.units, chosen, self.candidates).items()}

    def chosen(self, given: Mapping[str, Rung]) -> list[int] | None:
        """The choice that gives modules this; None if no candidate does."""
        found = []
        for unit in self.units:
            fitting = (at for at, rung in enumerate(self.candidates) if self._gives(rung, unit, given))
            if (first := next(fitting, None)) is None:
                return None
            found.append(first)
        return found

    def _gives(self, rung: Rung, unit: Unit, given: Mapping[str, Rung]) -> bool:
        return all(self.gives[rung][name] == given[name] for name in unit.modules)


def menu_of_bits(solver: LinearPass, model: ModelSpec, anatomy: Anatomy, bits: Sequence[int]) -> Menu:
    """Bits for `solver`. What engines join into one matrix gets the same. Raises UsageError if it leaves none open."""
    modules = _open_modules(solver, anatomy, "bits", bits[0])
    gives: dict[Rung, dict[str, Rung]] = {each: dict.fromkeys(sorted(modules), each) for each in bits}
    steps: dict[Rung, LinearPass] = {rung: solver.with_bits(given) for rung, given in gives.items()}
    for name in sorted(modules):
        if not all(isinstance(step.number_format(name), IntFormat) for step in steps.values()):
            raise UsageError(f"{name} is not to have an integer grid: mixed has no bits to choose for it",
                             f"say `format: int`, or leave it out: skip: [{name}]")  # fmt: skip
    units = tuple(_unit(names, list(steps.values()), model) for names in tied_modules(anatomy, modules))
    return Menu(units, tuple(bits), steps, gives)


def menu_of_types(solver: LinearPass, model: ModelSpec, anatomy: Anatomy, kinds: Sequence[str]) -> Menu:
    """Types of GGUF's for `solver`. What GGUF has in one tensor gets the same.

    Raises UsageError if it leaves none open, RefusedError for rows that a type does not divide if it is `strict`.
    """
    modules = sorted(_open_modules(solver, anatomy, "format", kinds[0]))
    notes, gives = list[str](), dict[Rung, dict[str, Rung]]()
    for kind in kinds:
        substitutes = solver.substitutes(model, dict.fromkeys(modules, kind))
        given: dict[str, Rung] = {name: substitutes[name].found if name in substitutes else kind for name in modules}
        notes += substitutes_told(Counter(substitutes.values()))
        if given not in gives.values():
            gives[kind] = given
    steps = {kind: solver.with_bits(given) for kind, given in gives.items()}
    totals = {kind: sum(_costs(modules, step, model)) for kind, step in steps.items()}
    order = sorted(gives, key=totals.__getitem__)
    units = (
        _unit(names, [steps[kind] for kind in order], model) for names in stacked_modules(anatomy, frozenset(modules))
    )
    return Menu(tuple(units), tuple(order), steps, gives, tuple(notes))


def _open_modules(solver: LinearPass, anatomy: Anatomy, option: str, rung: Rung) -> frozenset[str]:
    """The modules whose `option` the pass leaves to others; it is for them once they have a `rung`."""
    unsaid = frozenset(name for name in anatomy.linears if solver.leaves_open(name, option))
    modules = solver.with_bits(dict.fromkeys(unsaid, rung)).targets(anatomy) & unsaid
    if not modules:
        raise UsageError(
            f"{solver.name} leaves no {option} for mixed to choose", f"leave rules for `{option}` out of {solver.name}"
        )
    return modules


def _unit(names: Sequence[str], steps: Sequence[LinearPass], model: ModelSpec) -> Unit:
    weights = sum(model.tensors[f"{name}.weight"].size for name in names)
    return Unit(tuple(names), weights, tuple(sum(_costs(names, step, model)) for step in steps))


def _costs(names: Sequence[str], step: LinearPass, model: ModelSpec) -> list[int]:
    """The bits of each module in all, scales included."""
    found = []
    for name in names:
        spec, number_format = model.tensors[f"{name}.weight"], step.number_format(name)
        assert number_format is not None  # it is one of the pass's targets
        found.append(round(number_format.bits_per_weight(spec.shape) * spec.size))
    return found
