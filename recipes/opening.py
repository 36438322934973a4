"""A recipe with its model's headers and its texts at hand: what its plan and its run start from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.files.source import resolve
from compress.formats.views.fit import Decoded, decoded_spec
from compress.passes.choice.chooser import Chooser
from compress.passes.core.base import LayerPass, ModelPass, Pass, Product
from compress.passes.core.report import Reporter
from compress.passes.forward.texts.blend import beside
from compress.passes.model.outline import Known, outline_of
from compress.passes.model.sequences import Amount
from compress.recipes.artifacts import artifact_at
from compress.recipes.figures.planned import FitPlan
from compress.recipes.fitting.budget import budgeted, products_of
from compress.recipes.fitting.choice import choose
from compress.recipes.fitting.ways import ways
from compress.recipes.fitting.wish import place_of
from compress.recipes.foresight import foresee
from compress.recipes.recipe import Recipe, with_steps
from compress.recipes.stages import Texts, largest
from compress.recipes.texts import count_texts, read_texts

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton


@dataclass(frozen=True)
class Outlined:
    """What a plan starts from: the recipe with every option settled, and as it was `written`, but for what `fit` chose.

    `texts`: how much there is for each pass, by its number.
    """

    recipe: Recipe
    written: Recipe
    source: Checkpoint
    model: Known
    texts: Mapping[int, Amount]
    fit: FitPlan | None = None

    @property
    def ceiling(self) -> tuple[int, str]:
        """The bytes of weights that a repair may come to, and what says so: nothing, if that is empty."""
        said = [(self.recipe.gates.max_bytes, "gates.max_bytes"), (self.fit.room if self.fit else None, "fit")]
        said += [(step.most_bytes(), step.name) for step in self.written.passes if isinstance(step, Chooser)]
        return min(((most, what) for most, what in said if most is not None), default=(sys.maxsize, ""))


@dataclass(frozen=True)
class Opened:
    """`recipe` has every option settled, `written` what `fit` chose; `source` is its model, of which only headers
    were read."""

    recipe: Recipe
    written: Recipe
    source: Checkpoint
    skeleton: Skeleton
    texts: Texts
    fit: FitPlan | None = None

    @property
    def outlined(self) -> Outlined:
        amounts = {number: text.amount for number, text in self.texts.items()}
        return Outlined(self.recipe, self.written, self.source, self.skeleton, amounts, self.fit)


def open_recipe(recipe: Recipe, device: torch.device, reporter: Reporter) -> Opened:
    """Open what a recipe names. Raises UsageError for what cannot end well, InputError for a bad file or text."""
    from compress.passes.model.skeleton import Skeleton

    foresee(recipe, reporter.note)
    reporter.tell("opening and tracing the model")
    source, skeleton = Skeleton.open(_files(recipe, reporter.note), device)
    source = _working(recipe, source)
    recipe, fit = _fitted(recipe, source, skeleton, reporter)
    settled = _settled(recipe, source, skeleton, reporter.note)
    return Opened(settled, recipe, source, skeleton, read_texts(settled, source, skeleton, reporter), fit)


def outline_recipe(recipe: Recipe, reporter: Reporter, cache: Path | None) -> Outlined:
    """`open_recipe` for a plan alone: what was found before, and lies in `cache`, is not found again."""
    foresee(recipe, reporter.note)
    reporter.tell("opening and tracing the model")
    model = outline_of(_files(recipe, reporter.note), cache)
    source = _working(recipe, model.source)
    recipe, fit = _fitted(recipe, source, model, reporter)
    settled = _settled(recipe, source, model, reporter.note)
    return Outlined(settled, recipe, source, model, count_texts(settled, source, model, reporter, cache), fit)


def model_of(recipe: Recipe) -> str:
    """The recipe's model, its path as it is from where the shell stands."""
    return str(beside(recipe.origin.folder_of("model"), recipe.model))


def _files(recipe: Recipe, progress: Callable[[str], None]) -> Checkpoint:
    return open_checkpoint(artifact_at(resolve(model_of(recipe), progress=progress)))


def _working(recipe: Recipe, source: Checkpoint) -> Checkpoint:
    """The model as passes see it. One that comes quantized keeps its codes only if no pass makes weights anew."""
    anew = any(isinstance(step, LayerPass) or (isinstance(step, ModelPass) and step.decodes) for step in recipe.passes)
    return Decoded(source, decoded_spec(source.spec)) if anew else source


def _settled(recipe: Recipe, source: Checkpoint, known: Known, note: Callable[[str], None]) -> Recipe:
    """The recipe with no option left open, each decided for the model as it reaches its pass."""
    model, reached, steps, calibrated = source.spec, known, list[Pass](), False
    for number, step in enumerate(recipe.passes):
        with recipe.origin.placing("passes", number):
            reached = reached.of_spec(model, source.path)
            here = step.located(recipe.origin.folder_of("passes", number, step.name))
            unsaid = bool(steps) and isinstance(steps[-1], Chooser) and steps[-1].overrides(here)
            settled = here.settled(model, reached.anatomy, _unheard if unsaid else note)
            steps.append(settled.calibrated_by() if calibrated else settled)
            if isinstance(step, ModelPass) and step.reshapes:
                model = step.plan(model, reached.anatomy)
            calibrated = calibrated or (isinstance(step, ModelPass) and step.calibrates)
    for number in range(len(steps)):
        with recipe.origin.placing("passes", number):
            steps[number] = budgeted(steps, number, source, known)
    return recipe.model_copy(update={"passes": tuple(steps)})


def _unheard(said: str) -> None:
    """What a pass says of a number format that another one chooses in its place."""


def _fitted(recipe: Recipe, source: Checkpoint, known: Known, reporter: Reporter) -> tuple[Recipe, FitPlan | None]:
    """The recipe with bits of weights and cache that fit where its result is to run, if it says where."""
    with recipe.origin.placing("fit"):
        place = place_of(recipe.fit, recipe.targets)
        if place is None:
            return recipe, None
        reporter.tell("choosing what fits")

        def weigh(steps: Mapping[int, Pass]) -> list[Product]:
            return _products(with_steps(recipe, steps), source, known)

        chosen, plan = choose(ways(recipe.passes), weigh, place, recipe.targets)
    return with_steps(recipe, chosen.steps), plan


def _products(recipe: Recipe, source: Checkpoint, known: Known) -> list[Product]:
    """What the recipe will write, of all ways that it may go."""
    settled = _settled(recipe, source, known, lambda said: None)
    return [
        product
        for passes in largest(settled.passes, source.spec, known.anatomy)
        for product in products_of(passes, source, known)
    ]
