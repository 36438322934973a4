"""What a recipe runs on, and which of its passes run together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.files.source import resolve
from compress.formats.views.fit import Decoded, decoded_spec
from compress.passes.choice.chooser import Choice, Chooser
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.blank import matrices
from compress.recipes.recipe import Recipe

Stage = ModelPass | tuple[LayerPass, ...]


def stages(passes: Sequence[Pass]) -> list[Stage]:
    """The passes in order: neighbouring layer-wise ones share one sweep, every other one stands alone."""
    grouped: list[Stage] = []
    for layerwise, steps in groupby(passes, key=lambda step: isinstance(step, LayerPass)):
        if layerwise:
            grouped.append(tuple(step for step in steps if isinstance(step, LayerPass)))
        else:
            grouped.extend(step for step in steps if isinstance(step, ModelPass))
    return grouped


def largest(passes: Sequence[Pass], model: ModelSpec, anatomy: Anatomy) -> list[tuple[Pass, ...]]:
    """The passes with bits filled in that stages will choose: one of these ways leaves the most bytes."""
    return _ways(passes, lambda chooser, steps: chooser.largest(steps, model, anatomy))


def even(passes: Sequence[Pass], model: ModelSpec, anatomy: Anatomy) -> list[tuple[Pass, ...]]:
    """The passes with every candidate in turn filled in everywhere, where stages will choose bits."""
    return _ways(passes, lambda chooser, steps: chooser.even(steps, model, anatomy))


def _ways(
    passes: Sequence[Pass], choices: Callable[[Chooser, Sequence[LayerPass]], list[Choice]]
) -> list[tuple[Pass, ...]]:
    ways: list[tuple[Pass, ...]] = [()]
    before: Pass | None = None
    for stage in (*stages(passes), ()):
        following = stage if isinstance(stage, tuple) else ()
        chosen = choices(before, following) if isinstance(before, Chooser) else [{}]
        steps = [stage] if isinstance(stage, ModelPass) else []
        ways = [(*way, *steps, *(step.with_bits(bits) for step in following)) for way in ways for bits in chosen]
        before = stage if isinstance(stage, ModelPass) else None
    return ways


def open_source(recipe: Recipe, progress: Callable[[str], None]) -> Checkpoint:
    """The recipe's model. One that comes quantized keeps its codes only if no pass quantizes anything anew."""
    source = matrices(open_checkpoint(resolve(recipe.model, progress=progress)))
    if any(isinstance(step, LayerPass) for step in recipe.passes):
        return Decoded(source, decoded_spec(source.spec))
    return source
