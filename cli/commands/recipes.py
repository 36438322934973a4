"""The commands on recipes: run, quantize, plan."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from compress.cli.commands.carry_out import Budgets, carry_out
from compress.cli.commands.shared import Device, Fresh, MaxDisk, MaxRam, MaxVram, Quiet, Set, working
from compress.cli.commands.together import launch, one_voice
from compress.cli.terminal import completion
from compress.cli.terminal.output import Json, emit
from compress.formats.errors import UsageError
from compress.formats.sizes import parse_bytes
from compress.kernels.share import Crew
from compress.passes.core.processes import started_together


def run(
    context: typer.Context,
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
    fresh: Fresh = False,
    device: Device = "cpu",
    max_ram: MaxRam = None,
    max_vram: MaxVram = None,
    max_disk: MaxDisk = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            metavar="N",
            help="Work in so many processes; with --device cuda, each on a GPU of its own.  [default: 1]",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where time goes: forward, statistics, solving, reading, writing.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the gates as JUnit's XML, for CI.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe. After an interruption the same command goes on where it stopped."""
    if processes is not None and processes > 1 and started_together() == 1:
        given = sys.stdin.buffer.read() if recipe == "-" else None
        raise typer.Exit(launch(context.obj, processes, given))
    with one_voice(device, processes) as together:
        with working(quiet or not together.main):
            from compress.recipes.recipe import default_output, load

            loaded = load(recipe, overrides or ())
        budgets = Budgets.asked(device, max_ram, max_vram, max_disk)
        target = output or default_output(recipe, loaded)
        look = recipe == "quickstart"
        asked = {"fresh": fresh, "json": json, "quiet": quiet, "profile": profile}
        carry_out(loaded, target, budgets, **asked, first_look=look, processes=together, junit=junit)


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A directory, a .gguf file, a hub id, or pypi:PACKAGE.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="CONTAINER,…",
            help="What to write: gguf for llama.cpp, gptq or compressed-tensors for vLLM. See `compress dialects`.",
            autocompletion=completion.containers,
        ),
    ],
    bits: Annotated[int | None, typer.Option("--bits", help="Bits per weight, 2 to 8.  [default: 4]")] = None,
    method: Annotated[
        str, typer.Option("--method", help="See `compress passes`.", autocompletion=completion.passes)
    ] = "gptq",
    group_size: Annotated[
        int | None, typer.Option("--group-size", help="Columns that share a scale; -1: the whole row.")
    ] = None,
    data: Annotated[str, typer.Option("--data", help="Text to calibrate on: a file, a dataset's name.")] = "builtin",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: out/MODEL-METHOD-BITS.")
    ] = None,
    fresh: Fresh = False,
    device: Device = "cpu",
    max_ram: MaxRam = None,
    max_vram: MaxVram = None,
    max_disk: MaxDisk = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a model without a recipe. Shows the recipe that it runs, ready to be kept and changed."""
    with working(quiet):
        from compress.recipes.jobs.quantize import folder_of, recipe_of, recipe_text

        containers = [name.strip() for name in to.split(",")]
        text = recipe_text(model, containers, method=method, bits=bits, group_size=group_size, data=data)
        recipe = recipe_of(text)
    budgets = Budgets.asked(device, max_ram, max_vram, max_disk)
    if not quiet:
        typer.echo(f"# the recipe that runs; keep it as a file, change it, and `compress run FILE`\n{text}", err=True)
    carry_out(recipe, output or folder_of(recipe), budgets, fresh=fresh, json=json, quiet=quiet)


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
    max_vram: MaxVram = None,
    max_disk: MaxDisk = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, metavar="N", help="How many will work; each on a GPU, with --max-vram."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    check: Annotated[bool, typer.Option("--check", help="Only say of each recipe whether it is sound.")] = False,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="More recipes, with --check.", show_default=False)
    ] = None,
) -> None:
    """Say what a recipe will write, or how large a model is. Reads headers only: no weight.

    With --check, for CI and pre-commit: any number of recipes, one line each; models that are not here are not fetched.
    """
    if check:
        _refuse({"--max-vram": max_vram, "--max-disk": max_disk, "--processes": processes})
        _check([source, *(more or ())], overrides, target, max_ram, json, quiet)
        return
    if more:
        raise UsageError("several recipes are planned one by one", "or only checked, with --check")
    with working(quiet):
        from compress.recipes.recipe import is_recipe

    if is_recipe(source):
        if max_ram and max_vram:
            raise UsageError(
                "a run computes in one memory", "plan with --max-vram what a GPU will do, else with --max-ram"
            )
        ram, disk = (parse_bytes(size) if size else None for size in (max_vram or max_ram, max_disk))
        crew = Crew(processes or 1, 1 if max_vram else processes or 1)
        _plan_recipe(source, overrides or (), target or (), ram, disk, crew, json, quiet)
        return
    if overrides or max_ram or max_vram or max_disk or processes or target:
        options = "--set, --target, --processes, --max-ram, --max-vram and --max-disk"
        raise UsageError(f"{options} belong to a recipe, and this is a model")
    _plan_model(source, json, quiet)


def _refuse(options: Mapping[str, object]) -> None:
    """Raise UsageError for options of a plan that a check does not look at."""
    if given := [name for name, value in options.items() if value is not None]:
        raise UsageError(f"--check does not look at {', '.join(given)}", "plan that recipe by itself: compress plan")


def _plan_recipe(
    source: str,
    overrides: Sequence[str],
    targets: Sequence[str],
    max_ram: int | None,
    max_disk: int | None,
    crew: Crew,
    json: bool,
    quiet: bool,
) -> None:
    """What a recipe will write."""
    with working(quiet) as reporter:
        from compress.cli.views import recipes as show_recipes
        from compress.formats.files.source import cache_directory
        from compress.recipes.plan import plan as plan_recipe
        from compress.recipes.recipe import load, with_targets

        recipe, cache = with_targets(load(source, overrides), targets), cache_directory() / "plans"
        planned = plan_recipe(recipe, max_ram=max_ram, max_disk=max_disk, reporter=reporter, cache=cache, crew=crew)
    emit(planned.model_dump(mode="json"), json, lambda: show_recipes.plan(planned))


def _plan_model(source: str, json: bool, quiet: bool) -> None:
    """How large a model is."""
    with working(quiet) as reporter:
        from compress.cli.views import memory as show_memory
        from compress.formats import open_checkpoint
        from compress.formats.files.source import resolve
        from compress.recipes.jobs.memory import memory_of

        checkpoint = open_checkpoint(resolve(source, progress=reporter.note))
    table = memory_of(source, checkpoint.spec, checkpoint.nbytes())
    emit(table.model_dump(mode="json"), json, lambda: show_memory.memory(table))


def _check(
    sources: list[str],
    overrides: list[str] | None,
    target: list[str] | None,
    max_ram: str | None,
    json: bool,
    quiet: bool,
) -> None:
    """Exits with the worst of the recipes' exit codes."""
    with working(quiet) as reporter:
        from compress.cli.views import recipes as show_recipes
        from compress.formats.files.source import cache_directory
        from compress.recipes.elsewhere.check import check

        found = check(
            sources,
            changes=overrides or (),
            targets=target or (),
            max_ram=parse_bytes(max_ram) if max_ram else None,
            cache=cache_directory() / "plans",
            reporter=reporter,
        )
    emit({"recipes": [each.model_dump(mode="json") for each in found]}, json, lambda: show_recipes.checks(found))
    if worst := max(each.exit_code for each in found):
        raise typer.Exit(worst)
