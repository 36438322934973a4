"""`compress plan --check`: is every one of these recipes sound? Each is looked at, whatever is wrong with others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compress.formats.errors import CompressError
from compress.passes.core.report import Reporter
from compress.recipes.foresight import foresee
from compress.recipes.opening import model_of
from compress.recipes.plan import plan
from compress.recipes.recipe import load, with_targets


class Checked(BaseModel):
    """One recipe: what is wrong with it, empty if nothing is, and the exit code that `plan` would have.

    `planned`: its model lies here, so shapes, containers and texts were looked at as well.
    """

    model_config = ConfigDict(frozen=True)
    recipe: str
    planned: bool
    error: str = ""
    hint: str = ""
    exit_code: int = 0


def check(
    sources: Iterable[str],
    *,
    changes: Iterable[str] = (),
    targets: Iterable[str] = (),
    max_ram: int | None = None,
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> list[Checked]:
    """Check each recipe. Nothing is downloaded: one whose model is elsewhere is held against the schema alone."""
    changes, targets, reporter = tuple(changes), tuple(targets), reporter or Reporter()
    return [_checked(source, changes, targets, max_ram, cache, reporter) for source in sources]


def _checked(
    source: str, changes: Iterable[str], targets: Iterable[str], max_ram: int | None, cache: Path | None,
    reporter: Reporter,
) -> Checked:  # fmt: skip
    planned = False
    try:
        recipe = with_targets(load(source, changes), targets)
        planned = Path(model_of(recipe)).exists()
        if planned:
            plan(recipe, max_ram=max_ram, reporter=reporter, cache=cache)
        else:
            foresee(recipe, reporter.note)
    except CompressError as error:
        return Checked(recipe=source, planned=planned, error=str(error), hint=error.hint, exit_code=error.exit_code)
    return Checked(recipe=source, planned=planned)
