"""The commands that only look something up: passes, dialects, schema, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress.cli.terminal.output import Json, emit, print_json
from compress.formats.errors import StorageError, UsageError, suggest


def passes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this pass's options.")] = None,
    json: Json = False,
) -> None:
    """List the passes there are, or the options of one."""
    from compress import passes as registry
    from compress.cli.views import names as show_names

    if name is not None:
        schema = registry.get(name).model_json_schema()
        emit(schema, json, lambda: show_names.options(schema))
        return
    kinds = {key: _first_line(registry.get(key)) for key in registry.names()}
    emit(kinds, json, lambda: show_names.names(kinds.items()))


def dialects(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this dialect's options.")] = None,
    json: Json = False,
) -> None:
    """List the containers there are, or the options of one."""
    from compress.cli.views import names as show_names
    from compress.formats import dialects as registry

    kinds = registry()
    if name is None:
        lines = {key: _first_line(kind) for key, kind in kinds.items()}
        emit(lines, json, lambda: show_names.names(lines.items()))
        return
    if name not in kinds:
        raise UsageError(f"there is no dialect '{name}'{suggest(name, kinds)}")
    schema = kinds[name].model_json_schema()
    emit(schema, json, lambda: show_names.options(schema))


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from compress.recipes.recipe import schema as recipe_schema

    print_json(recipe_schema())


def init(
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to write it; - for stdout.")] = "recipe.yaml",
) -> None:
    """Write a commented recipe to start from."""
    from compress.recipes import bundled

    text = bundled.read("starter").decode()
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


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]
