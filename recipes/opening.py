"""A recipe with its model's headers and its texts at hand: what its plan and its run start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.files.source import resolve
from compress.formats.views.fit import Decoded, decoded_spec
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.core.report import Reporter
from compress.passes.forward.text import beside
from compress.passes.model.skeleton import Skeleton
from compress.recipes.artifacts import artifact_at
from compress.recipes.foresight import foresee
from compress.recipes.recipe import Recipe
from compress.recipes.stages import Texts
from compress.recipes.texts import read_texts


@dataclass(frozen=True)
class Opened:
    """`recipe` has every option settled; `source` is its model, of which only headers were read."""

    recipe: Recipe
    source: Checkpoint
    skeleton: Skeleton
    texts: Texts


def open_recipe(recipe: Recipe, device: torch.device, reporter: Reporter) -> Opened:
    """Open what a recipe names. Raises UsageError for what cannot end well, InputError for a bad file or text."""
    foresee(recipe, reporter.note)
    reporter.tell("opening and tracing the model")
    source, skeleton = _open_source(recipe, device, reporter.note)
    settled = _settled(recipe, source, skeleton, reporter.note)
    return Opened(settled, source, skeleton, read_texts(settled, source, skeleton, reporter))


def model_of(recipe: Recipe) -> str:
    """The recipe's model, its path as it is from where the shell stands."""
    return str(beside(recipe.origin.folder_of("model"), recipe.model))


def _open_source(recipe: Recipe, device: torch.device, progress: Callable[[str], None]) -> tuple[Checkpoint, Skeleton]:
    """The recipe's model. One that comes quantized keeps its codes only if no pass quantizes anything anew."""
    files = open_checkpoint(artifact_at(resolve(model_of(recipe), progress=progress)))
    source, skeleton = Skeleton.open(files, device)
    if any(isinstance(step, LayerPass) for step in recipe.passes):
        return Decoded(source, decoded_spec(source.spec)), skeleton
    return source, skeleton


def _settled(recipe: Recipe, source: Checkpoint, skeleton: Skeleton, note: Callable[[str], None]) -> Recipe:
    """The recipe with no option left open, each decided for the model as it reaches its pass."""
    model, steps = source.spec, list[Pass]()
    for number, step in enumerate(recipe.passes):
        with recipe.origin.placing("passes", number):
            skeleton = skeleton.of_spec(model, source.path)
            steps.append(step.settled(model, skeleton.anatomy, note))
            if isinstance(step, ModelPass):  # no other changes a shape
                model = step.plan(model, skeleton.anatomy)
    return recipe.model_copy(update={"passes": tuple(steps)})
