"""Which passes of a recipe run together, and what the bytes of each stage depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeGuard

from compress.formats.base import ModelSpec
from compress.passes.choice.chooser import Choice, Chooser
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.core.stage import Stage
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences

Steps = tuple[Pass, ...]
"""The passes of one stage: a whole-model pass, or neighbouring layer-wise ones."""
Texts = Mapping[int, Sequences]
"""What passes have read, by their number in the recipe."""


def stages(passes: Sequence[Pass]) -> list[Steps]:
    """The passes in order: neighbouring layer-wise ones share one sweep, every other one stands alone."""
    grouped: list[Steps] = []
    for step in passes:
        if grouped and isinstance(step, LayerPass) and layerwise(grouped[-1]):
            grouped[-1] += (step,)
        else:
            grouped.append((step,))
    return grouped


def first_numbers(grouped: Sequence[Steps]) -> list[int]:
    """The number in the recipe of each stage's first pass."""
    return list(accumulate((len(steps) for steps in grouped), initial=0))[:-1]


def layerwise(steps: Steps) -> tuple[LayerPass, ...]:
    """The passes of a stage that is a sweep; none of one that is not."""
    return tuple(step for step in steps if isinstance(step, LayerPass))


def writes(step: Pass) -> bool:
    """Whether the pass writes an artifact."""
    return isinstance(step, ModelPass) and step.writes


def largest(passes: Sequence[Pass], model: ModelSpec, anatomy: Anatomy) -> list[tuple[Pass, ...]]:
    """The passes with bits filled in that stages will choose: one of these ways leaves the most bytes."""
    return _ways(passes, lambda chooser, steps: chooser.largest(steps, model, anatomy))


def even(passes: Sequence[Pass], model: ModelSpec, anatomy: Anatomy) -> list[tuple[Pass, ...]]:
    """The passes with every candidate in turn filled in everywhere, where stages will choose bits."""
    return _ways(passes, lambda chooser, steps: chooser.even(steps, model, anatomy))


def given(passes: Sequence[Pass], bits: Choice, model: ModelSpec, anatomy: Anatomy) -> tuple[Pass, ...]:
    """The passes with `bits` where stages will choose those; with the most bytes where they choose something else."""

    def choices(chooser: Chooser, steps: Sequence[LayerPass]) -> list[Choice]:
        return [bits] if chooser.chooses_bits else chooser.largest(steps, model, anatomy)

    return _ways(passes, choices)[0]


def least(passes: Sequence[Pass], model: ModelSpec, anatomy: Anatomy) -> dict[str, Any]:
    """The first candidate for every module that stages will choose bits for."""
    grouped = stages(passes)
    pairs = ((steps[0], layerwise(after)) for steps, after in pairwise(grouped))
    found = (step.even(after, model, anatomy)[0] for step, after in pairs if chooses_bits(step))
    return {name: bits for choice in found for name, bits in choice.items()}


def chooses_bits(step: Pass) -> TypeGuard[Chooser]:
    """Whether the pass chooses bits for those after it."""
    return isinstance(step, Chooser) and step.chooses_bits


def _ways(
    passes: Sequence[Pass], choices: Callable[[Chooser, Sequence[LayerPass]], list[Choice]]
) -> list[tuple[Pass, ...]]:
    ways: list[tuple[Pass, ...]] = [()]
    before: Pass | None = None
    for steps in (*stages(passes), ()):
        following = layerwise(steps)
        others = () if following else steps
        ways = [(*way, *others, *given) for way in ways for given in _given(before, following, choices)]
        before = others[0] if others else None
    return ways


def _given(
    before: Pass | None, following: Sequence[LayerPass], choices: Callable[[Chooser, Sequence[LayerPass]], list[Choice]]
) -> list[Sequence[LayerPass]]:
    if not isinstance(before, Chooser):
        return [following]
    return [[before.give(step, choice) for step in following] for choice in choices(before, following)]


def keyed(passes: Sequence[Pass], base: Mapping[str, Any], texts: Texts, work: Path) -> list[Stage]:
    """The stages, each with what its bytes depend on: `base`, and what the stages before it changed.

    Text for calibration counts only where it is used; what only looks at the model (evaluations, exports) changes
    nothing for the stages after it.
    """
    grouped = stages(passes)
    spell = _Names()
    chain, calibration = dict(base), dict[str, Any]()
    staged = []
    for first, steps, after in zip(first_numbers(grouped), grouped, [*grouped[1:], ()]):
        text, following = texts.get(first), layerwise(after)
        own = {
            f"{label}.{option}": value
            for step in steps
            for label in [spell(step)]
            for option, value in step.depends(text).items()
        }
        if isinstance(steps[0], Chooser):
            own |= {f"for {step.name}.{o}": value for step in following for o, value in step.depends(None).items()}
        depends = {**chain, **(calibration if calibrated(steps) else {}), **own}
        staged.append(Stage(steps, depends, work, following, text))
        if isinstance(steps[0], ModelPass) and steps[0].calibrates:
            calibration = own if text is not None else depends
        elif any(step.alters for step in steps):
            chain = depends
    return staged


def calibrated(steps: Steps) -> bool:
    """Whether what a stage leaves depends on what was chosen to calibrate by."""
    first = steps[0]
    return first.heeds_calibration if isinstance(first, ModelPass) else any(step.needs() for step in layerwise(steps))


class _Names:
    """Names for passes: `gptq`, and for a second one `gptq 2`."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, step: Pass) -> str:
        self._seen[step.name] += 1
        return step.name if self._seen[step.name] == 1 else f"{step.name} {self._seen[step.name]}"
