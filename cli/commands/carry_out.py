"""A recipe carried out for somebody who watches: progress, the report, a first answer, the gates."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from compress.cli.commands.shared import device_here, working
from compress.cli.terminal.output import emit
from compress.formats.errors import GateError
from compress.formats.sizes import parse_bytes
from compress.passes.core.processes import Processes

if TYPE_CHECKING:
    from compress.recipes.recipe import Recipe
    from compress.recipes.report import RunReport


@dataclass(frozen=True)
class Budgets:
    """Where to compute, and in how many bytes; None: in all that there is."""

    device: str
    max_ram: int | None
    max_vram: int | None
    max_disk: int | None = None

    @classmethod
    def asked(cls, device: str, max_ram: str | None, max_vram: str | None, max_disk: str | None = None) -> Budgets:
        """From the options as they were typed; UsageError or RefusedError for a device or a size that is none."""
        return cls(
            device_here(device), *(parse_bytes(size) if size else None for size in (max_ram, max_vram, max_disk))
        )


def carry_out(
    recipe: Recipe,
    output: Path,
    budgets: Budgets,
    *,
    fresh: bool,
    json: bool,
    quiet: bool,
    profile: bool = False,
    first_look: bool = False,
    processes: Processes | None = None,
    junit: Path | None = None,
) -> None:
    """Run `recipe` into `output` and say what came of it; on a terminal small models answer a question, too.

    With `first_look` they do wherever the report goes. Of several `processes` the main one says it all. The gates
    go into the file `junit` as well. Exits with GateError's code if one was missed.
    """
    processes = processes or Processes()
    with working(quiet or not processes.main) as reporter:
        from compress.kernels.laps import profiled
        from compress.recipes.jobs.repair import run

        with profiled(profile):
            report = run(
                recipe,
                output,
                fresh=fresh,
                device=processes.device(budgets.device),
                max_ram=budgets.max_ram,
                max_vram=budgets.max_vram,
                max_disk=budgets.max_disk,
                reporter=reporter,
                processes=processes,
            )
    if junit is not None and processes.main:
        from compress.formats.files.storage import write_bytes
        from compress.recipes.gates.junit import junit as as_junit

        write_bytes(junit, as_junit(report.gates, report.model, report.seconds))
    processes.on_main(lambda: _say(recipe, report, output, budgets, json, quiet, first_look))


def _say(
    recipe: Recipe, report: RunReport, output: Path, budgets: Budgets, json: bool, quiet: bool, first_look: bool
) -> None:
    from compress.cli.views import recipes as show_recipes
    from compress.recipes.page.of_run import leave_page

    page = leave_page(recipe, report, output)
    emit(report.model_dump(mode="json"), json, lambda: [*show_recipes.run_report(report), f"figures: {page}"])
    if (first_look or sys.stdout.isatty()) and not (json or quiet):
        _show_answers(recipe, report, budgets.device)
    if report.missed:
        for gate in report.missed:
            typer.echo(f"gate missed: {gate}", err=True)
        raise typer.Exit(GateError.exit_code)


def _show_answers(recipe: Recipe, report: RunReport, device: str) -> None:
    """The answers of the original and of what became of it, if the model is small."""
    from compress.cli.terminal.tables import show
    from compress.cli.views import recipes as show_recipes
    from compress.recipes.jobs.answers import LARGEST, ask
    from compress.recipes.opening import model_of

    if not report.artifacts or report.parameters > LARGEST:
        return
    artifact = report.artifacts[0]
    try:
        with working(quiet=False) as reporter:
            reporter.note("asking the original and the result a question")
            found = ask({"original": model_of(recipe), artifact.dialect: artifact.path}, device=device)
    except Exception as error:  # noqa: BLE001 - the run is done and well: an answer less is no failure
        typer.echo(f"note: no answer to show: {type(error).__name__}: {error}", err=True)
        return
    show(*show_recipes.answers(found))
