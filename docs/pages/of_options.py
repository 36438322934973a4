"""Options as a table, from the JSON Schema of a pass, a container or a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.cli.views.names import type_name


def table(schema: Mapping[str, Any]) -> str:
    """option | type | default | what it is; a sentence where there are none."""
    rows = [_row(name, option, schema) for name, option in schema.get("properties", {}).items()]
    if not rows:
        return "It has no options."
    return "\n".join(["| option | type | default | |", "|---|---|---|---|", *rows])


def cell(text: object) -> str:
    """Text that does not end a table's cell."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _row(name: str, option: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    kind = type_name(option, schema.get("$defs", {}))
    default = "required" if name in schema.get("required", []) else _default(option.get("default"))
    return f"| `{name}` | {cell(kind)} | {cell(default)} | {cell(option.get('description', ''))} |"


def _default(value: Any) -> str:
    if value is None or value in ([], {}):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
