"""The texts of a recipe: read before anything is computed, and whether they are long enough, or too long."""

from __future__ import annotations

from collections.abc import Callable

from compress.formats.base import Checkpoint
from compress.passes.core.base import ModelPass
from compress.passes.core.report import Reporter
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.recipes.recipe import Recipe
from compress.recipes.stages import Texts

_FEW = 4096
"""Tokens below which statistics of inputs are mostly noise, however narrow the inputs."""


def read_texts(recipe: Recipe, source: Checkpoint, skeleton: Skeleton, reporter: Reporter) -> Texts:
    """What whole-model passes read. Raises InputError for a file that has no text, RefusedError for too long a one."""
    reporter.start("read text", len(recipe.passes), "step")
    texts: dict[int, Sequences] = {}
    for number, step in enumerate(recipe.passes):
        if isinstance(step, ModelPass):
            reporter.tell(f"reading and tokenizing the text of {step.name}")
            path = ("passes", number, step.name, "data")
            with recipe.origin.placing(*path):
                _check_length(step, skeleton, reporter.note)
                text = step.read(source, recipe.origin.folder_of(*path))
                _tell_shortage(step, text, source, skeleton, reporter.note)
            if text is not None:
                texts[number] = text
        reporter.advance(step.name)
    reporter.finish()
    return texts


def _check_length(step: ModelPass, skeleton: Skeleton, note: Callable[[str], None]) -> None:
    if (extent := step.extent()) and skeleton.positions:
        skeleton.positions.refuse_beyond(extent[1], step.name, note)


def _tell_shortage(
    step: ModelPass, text: Sequences | None, source: Checkpoint, skeleton: Skeleton, note: Callable[[str], None]
) -> None:
    """Say what there is less of than was asked for, or than statistics want."""
    asked = step.extent()
    if asked is None:
        return
    count, tokens = (text.count, text.tokens) if text else (asked[0], asked[0] * asked[1])
    if count < asked[0]:
        note(f"{step.name}: there is text for {count:,} sequences of {asked[1]:,} tokens, {asked[0]:,} were asked for")
    shapes = source.spec.tensors
    widest = max(shapes[f"{name}.weight"].shape[1] for name in skeleton.anatomy.linears)
    if step.calibrates and tokens < (wanted := max(_FEW, widest)):
        note(f"{step.name}: {tokens:,} tokens are few to go by; {wanted:,} are the least that make sense here")
