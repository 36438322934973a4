"""More bits, or a wider type of GGUF's, for some modules: what is above what they have, and passes that say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from compress.formats.options import Match, PerTensor, resolve
from compress.kernels.qtensor import NumberFormat
from compress.passes.core.base import Pass, Rung
from compress.passes.model.anatomy import Anatomy
from compress.passes.options.any_format import FormatOptions, Named
from compress.passes.options.integers import Bits, IntegerOptions

T = TypeVar("T")

_MOST_BITS = 8
_WIDER = {
    "tq1_0": "q2_k", "tq2_0": "q2_k", "q2_k": "q3_k", "q3_k": "q4_k", "q4_k": "q5_k", "q5_k": "q6_k", "q6_k": "q8_0",
    "iq4_xs": "q5_k", "iq4_nl": "q5_0", "q4_0": "q5_0", "q5_0": "q8_0", "q4_1": "q5_1", "q5_1": "q8_0",
}  # fmt: skip
"""The next of the types that the same engines load."""


class Ladder:
    """The passes of a recipe, settled for its model, that say which number format a module gets."""

    def __init__(self, passes: Sequence[Pass], anatomy: Anatomy) -> None:
        found = {number: step for number, step in enumerate(passes) if isinstance(step, IntegerOptions)}
        self._steps = {number: (step, step.targets(anatomy)) for number, step in found.items()}

    @property
    def names(self) -> list[str]:
        """The passes, in order."""
        return [step.name for step, _ in self._steps.values()]

    def above(self, module: str) -> list[Rung]:
        """What the module has, and what is wider; empty for one that has neither bits nor such a type."""
        have = next((rung for step in self._of(module) if (rung := _rung(step, module)) is not None), None)
        return [] if have is None else [have, *_wider(have)]

    def rungs(self) -> list[Rung]:
        """All that modules could be raised to."""
        modules = {name for _, targets in self._steps.values() for name in targets}
        return list(dict.fromkeys(rung for name in sorted(modules) for rung in self.above(name)[1:]))

    def at_least(self, rung: Rung) -> dict[str, Rung]:
        """This for every module that has less and can be raised to it."""
        modules = {name for _, targets in self._steps.values() for name in targets}
        return {name: rung for name in sorted(modules) if rung in self.above(name)[1:]}

    def raised(self, passes: Sequence[Pass], chosen: Mapping[str, Rung]) -> tuple[Pass, ...]:
        """`passes`, settled or as they were written, with what was chosen for modules before their own rules."""
        return tuple(self._raised(number, step, chosen) for number, step in enumerate(passes))

    def number_format(self, module: str, rung: Rung) -> NumberFormat:
        """What the module gets with it."""
        step = next(self._of(module, last=True))
        found = _with(step, {module: rung}).number_format(module)
        assert found is not None  # it has one now
        return found

    def _of(self, module: str, last: bool = False) -> Iterator[IntegerOptions]:
        steps = (step for step, targets in self._steps.values() if module in targets)
        return reversed(list(steps)) if last else steps

    def _raised(self, number: int, step: Pass, chosen: Mapping[str, Rung]) -> Pass:
        if number not in self._steps:
            return step
        assert isinstance(step, IntegerOptions)  # as it is when it is settled
        own = self._steps[number][1]
        return _with(step, {name: rung for name, rung in chosen.items() if name in own})


def _rung(step: IntegerOptions, module: str) -> Rung | None:
    if step.integral(module):
        return resolve(step.bits, module)
    kind = resolve(step.format, module) if isinstance(step, FormatOptions) else None
    return kind if kind in _WIDER or kind in _WIDER.values() else None


def _wider(rung: Rung) -> Iterator[Rung]:
    if isinstance(rung, int):
        yield from range(rung + 1, _MOST_BITS + 1)
    while rung in _WIDER:
        yield (rung := _WIDER[str(rung)])


def _with(step: IntegerOptions, chosen: Mapping[str, Rung]) -> IntegerOptions:
    bits = {name: rung for name, rung in chosen.items() if isinstance(rung, int)}
    kinds = {name: rung for name, rung in chosen.items() if isinstance(rung, str)}
    changed: dict[str, object] = {"bits": _named(step.bits, bits, Match[Bits])} if bits else {}
    if kinds and isinstance(step, FormatOptions):
        changed["format"] = _named(step.format, kinds, Match[Named])
    return step.model_copy(update=changed)


def _named(option: PerTensor[T], chosen: Mapping[str, Rung], rule: type[Match[Any]]) -> tuple[Match[Any], ...]:
    """Rules for modules by name, before those that there are: as a recipe may have them, which can be read again.

    A rule that spoke of one of these modules alone is gone.
    """
    own: tuple[Match[Any], ...] = option if isinstance(option, tuple) else (rule(value=option),)
    rules = (rule(match=name, value=value) for name, value in chosen.items())
    return (*rules, *(before for before in own if before.match not in chosen))
