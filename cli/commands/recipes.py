"""The commands on recipes: run, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.commands.shared import Device, MaxRam, MaxVram, Quiet, Set, device_here, working
from compress.cli.terminal import completion
from compress.cli.terminal.output import Json, emit
from compress.cli.terminal.units import parse_bytes
from compress.formats.errors import GateError, UsageError


def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A file, a bundled name (quickstart), or - for stdin.",
            autocompletion=completion.recipes,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Default: out/ and the recipe's name (its model's, for -)."),
    ] = None,
    overrides: Set = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run in DIR did.")] = False,
    device: Device = "cpu",
    max_ram: MaxRam = None,
    max_vram: MaxVram = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe. After an interruption the same command goes on where it stopped."""
    from compress.cli.views import recipes as show_recipes
    from compress.recipes.recipe import default_output, load
    from compress.recipes.run import run as run_recipe

    loaded = load(recipe, overrides or ())
    target = output or default_output(recipe, loaded)
    ram, vram = (parse_bytes(size) if size else None for size in (max_ram, max_vram))
    place = device_here(device)
    with working(quiet) as reporter:
        report = run_recipe(loaded, target, fresh=fresh, device=place, max_ram=ram, max_vram=vram, reporter=reporter)
    emit(report.model_dump(mode="json"), json, lambda: show_recipes.run_report(report))
    if report.missed:
        for gate in report.missed:
            typer.echo(f"gate missed: {gate}", err=True)
        raise typer.Exit(GateError.exit_code)


def plan(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|MODEL",
            help="A recipe, or a model as recipes name it.",
            autocompletion=completion.recipes,
        ),
    ],
    overrides: Set = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="ENGINE",
            help="Refuse what it cannot load, as vllm.",
            autocompletion=completion.targets,
        ),
    ] = None,
    max_ram: MaxRam = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a recipe will write, or how large a model is. Reads headers only: no weight."""
    from compress.cli.views import memory as show_memory
    from compress.cli.views import recipes as show_recipes
    from compress.recipes.recipe import is_recipe, load, with_targets

    if is_recipe(source):
        from compress.recipes.plan import plan as plan_recipe

        recipe = load(source, overrides or ())
        recipe = with_targets(recipe, target or ())
        ram = parse_bytes(max_ram) if max_ram else None
        with working(quiet) as reporter:
            planned = plan_recipe(recipe, max_ram=ram, reporter=reporter)
        emit(planned.model_dump(mode="json"), json, lambda: show_recipes.plan(planned))
        return
    if overrides or max_ram or target:
        raise UsageError("--set, --target and --max-ram belong to a recipe, and this is a model")
    from compress.formats import open_checkpoint
    from compress.formats.files.source import resolve
    from compress.recipes.jobs.memory import memory_of

    with working(quiet) as reporter:
        checkpoint = open_checkpoint(resolve(source, progress=reporter.note))
    table = memory_of(source, checkpoint.spec, checkpoint.nbytes())
    emit(table.model_dump(mode="json"), json, lambda: show_memory.memory(table))
