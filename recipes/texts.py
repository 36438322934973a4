"""The texts of a recipe: read before anything is computed, and whether they are long enough, or too long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from compress.formats.base import Checkpoint
from compress.formats.errors import within
from compress.formats.files.kept import kept
from compress.passes.core.base import ModelPass
from compress.passes.core.report import Reporter
from compress.passes.model.outline import Known
from compress.passes.model.sequences import Amount, Sequences
from compress.recipes.recipe import Recipe
from compress.recipes.stages import Texts

T = TypeVar("T", Sequences, Amount)
Note = Callable[[str], None]

_FEW = 4096
"""Tokens below which statistics of inputs are mostly noise, however narrow the inputs."""


@dataclass(frozen=True)
class _Counted:
    """How much a pass reads, and what was to be said of it."""

    amount: Amount
    notes: tuple[str, ...]


def read_texts(recipe: Recipe, source: Checkpoint, model: Known, reporter: Reporter) -> Texts:
    """What whole-model passes read. Raises InputError for a file that has no text, RefusedError for too long a one."""

    def read(step: ModelPass, folder: Path, note: Note) -> Sequences | None:
        return step.read(source, folder, note)

    return _each(recipe, source, model, reporter, read)


def count_texts(
    recipe: Recipe, source: Checkpoint, model: Known, reporter: Reporter, cache: Path | None
) -> Mapping[int, Amount]:
    """How much `read_texts` reads, by the number of the pass; kept in `cache`, if any. Raises what it raises."""

    def count(step: ModelPass, folder: Path, note: Note) -> Amount | None:
        basis = step.basis(source, folder)
        if basis is None:
            text = step.read(source, folder, note)
            return None if text is None else text.amount
        counted = kept(cache, {step.name: basis}, _Counted, lambda: _counted(step, source, folder))
        for said in counted.notes:
            note(said)
        return counted.amount

    return _each(recipe, source, model, reporter, count)


def _counted(step: ModelPass, source: Checkpoint, folder: Path) -> _Counted:
    notes = list[str]()
    text = step.read(source, folder, notes.append)
    assert text is not None  # a pass that can tell what its text depends on has one
    return _Counted(text.amount, tuple(notes))


def _each(
    recipe: Recipe,
    source: Checkpoint,
    model: Known,
    reporter: Reporter,
    read: Callable[[ModelPass, Path, Note], T | None],
) -> dict[int, T]:
    """What `read` gives for each whole-model pass, by its number."""
    reporter.start("read text", len(recipe.passes), "step")
    texts: dict[int, T] = {}
    for number, step in enumerate(recipe.passes):
        if isinstance(step, ModelPass):
            reporter.tell(f"reading and tokenizing the text of {step.name}")
            path = ("passes", number, step.name)
            with recipe.origin.placing(*path):
                _check_length(step, model, reporter.note)
                note = partial(_tell, reporter.note, step.name)
                text = read(step, recipe.origin.folder_of(*path, "data"), note)
                _tell_shortage(step, text, source, model, reporter.note)
            if text is not None:
                texts[number] = text
        reporter.advance(step.name)
    reporter.finish()
    return texts


def _tell(note: Note, who: str, what: str) -> None:
    note(f"{who}: {what}")


def _check_length(step: ModelPass, model: Known, note: Note) -> None:
    if (extent := step.extent()) and model.positions:
        with within("seq_len"):
            model.positions.refuse_beyond(extent[1], step.name, note)


def _tell_shortage(
    step: ModelPass, text: Sequences | Amount | None, source: Checkpoint, model: Known, note: Note
) -> None:
    """Say what there is less of than was asked for, or than statistics want."""
    asked = step.extent()
    if asked is None:
        return
    count, tokens = (text.count, text.tokens) if text else (asked[0], asked[0] * asked[1])
    if count < asked[0]:
        note(f"{step.name}: there is text for {count:,} sequences of {asked[1]:,} tokens, {asked[0]:,} were asked for")
    shapes = source.spec.tensors
    widest = max(shapes[f"{name}.weight"].shape[1] for name in model.anatomy.linears)
    if step.calibrates and tokens < (wanted := max(_FEW, widest)):
        note(f"{step.name}: {tokens:,} tokens are few to go by; {wanted:,} are the least that make sense here")
