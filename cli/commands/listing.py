"""The commands that only look something up: passes, dialects, recipes, schema, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.terminal import completion
from compress.cli.terminal.output import Json, emit, print_json
from compress.formats.errors import StorageError, UsageError, suggest


def passes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this pass's options.", autocompletion=completion.passes)
    ] = None,
    json: Json = False,
) -> None:
    """List the passes there are, or the options of one."""
    from compress import passes as registry
    from compress.cli.views import names as show_names

    if name is not None:
        schema = registry.get(name).model_json_schema()
        emit(schema, json, lambda: show_names.options(schema))
        return
    kinds = registry.summaries()
    emit(kinds, json, lambda: show_names.names(kinds.items()))


def dialects(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show this dialect's options.", autocompletion=completion.dialects),
    ] = None,
    json: Json = False,
) -> None:
    """List the containers there are, or the options of one."""
    from compress import formats
    from compress.cli.views import names as show_names

    if name is None:
        kinds = formats.summaries()
        emit(kinds, json, lambda: show_names.names(kinds.items()))
        return
    known = formats.dialects()
    if name not in known:
        raise UsageError(f"there is no dialect '{name}'{suggest(name, known)}")
    schema = known[name].model_json_schema()
    emit(schema, json, lambda: show_names.options(schema))


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from compress.recipes.recipe import schema as recipe_schema

    print_json(recipe_schema())


def recipes(json: Json = False) -> None:
    """List the recipes that come with the program."""
    from compress.cli.views import names as show_names
    from compress.recipes import bundled

    found = bundled.summaries()
    emit(found, json, lambda: show_names.names(found.items()))


def init(
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to write it; - for stdout.")] = "recipe.yaml",
    recipe: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="NAME",
            help="Which one: see `compress recipes`.",
            autocompletion=completion.recipes,
        ),
    ] = "starter",
) -> None:
    """Write a commented recipe to start from."""
    from compress.recipes import bundled

    text = bundled.read(recipe).decode()
    if file == "-":
        typer.echo(text, nl=False)
        return
    try:
        with open(Path(file), "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"{file} exists already", "give another name: compress init FILE") from None
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from None
    typer.echo(f"wrote {file}; next: compress plan {file}, then compress run {file}", err=True)
