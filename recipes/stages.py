"""What a recipe runs on, and which of its passes run together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.fit import Decoded, decoded_spec
from compress.formats.source import resolve
from compress.passes.core.anatomy import Anatomy
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.core.chooser import Chooser
from compress.passes.core.empty import matrices
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


def possible(passes: Sequence[Pass], model: ModelSpec, anatomy: Anatomy) -> list[tuple[Pass, ...]]:
    """The passes with the bits that stages of the run may choose for others: the most bytes first."""
    ways: list[tuple[Pass, ...]] = [()]
    chooser: Chooser | None = None
    for stage in stages(passes):
        steps: tuple[Pass, ...] = stage if isinstance(stage, tuple) else (stage,)
        layerwise = [step for step in steps if isinstance(step, LayerPass)]
        choices = chooser.choices(layerwise, model, anatomy) if chooser else [{}]
        ways = [
            (*way, *(step.with_bits(chosen) if isinstance(step, LayerPass) else step for step in steps))
            for way in ways
            for chosen in choices
        ]
        chooser = stage if isinstance(stage, Chooser) else None
    if chooser:
        chooser.choices((), model, anatomy)
    return ways


def open_source(recipe: Recipe, progress: Callable[[str], None]) -> Checkpoint:
    """The recipe's model. One that comes quantized keeps its codes only if no pass quantizes anything anew."""
    source = matrices(open_checkpoint(resolve(recipe.model, progress=progress)))
    if any(isinstance(step, LayerPass) for step in recipe.passes):
        return Decoded(source, decoded_spec(source.spec))
    return source
