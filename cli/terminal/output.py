"""What goes to standard output: tables for people, or exactly one JSON object."""

from __future__ import annotations

import json as json_text
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


def emit(result: Any, as_json: bool, view: Callable[[], Iterable[RenderableType]]) -> None:
    """Print `result` (plain data) as JSON, or its `view`."""
    if as_json:
        print_json(result)
        return
    from compress.cli.terminal.tables import show

    show(*view())


def print_json(value: Any) -> None:
    """One JSON value, indented; NaN and infinities, which JSON has not, as null."""
    typer.echo(json_text.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
