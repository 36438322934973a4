"""What there is: names and options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from compress.cli.terminal.tables import new_table


def names(rows: Iterable[tuple[str, str]]) -> list[RenderableType]:
    """Names, and what each is for."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in rows:
        table.add_row(Text(name, style="bold"), text)
    return [table]


def options(schema: Mapping[str, Any]) -> list[RenderableType]:
    """The options of a pass or a dialect, from its JSON Schema."""
    table = new_table("option", "type", "default", "")
    required = schema.get("required", [])
    for name, option in schema.get("properties", {}).items():
        default = "required" if name in required else _plain(option.get("default"))
        kind = type_name(option, schema.get("$defs", {}))
        table.add_row(name, kind, default, option.get("description", ""))
    return [schema.get("description", ""), table]


def type_name(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON Schema's type in a few words: `integer 2…8 or a list of {match, value}`."""
    if "$ref" in schema:
        return type_name(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        kinds = [type_name(part, definitions) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        inner = schema.get("items", {})
        if "$ref" in inner and "value" in definitions[inner["$ref"].rpartition("/")[2]].get("properties", {}):
            return "a list of {match, value}"
        return f"a list of {type_name(inner, definitions)}"
    low = schema.get("minimum", schema.get("exclusiveMinimum", ""))
    high = schema.get("maximum", schema.get("exclusiveMaximum", ""))
    limits = f" {low}…{high}" if (low, high) != ("", "") else ""
    return f"{schema.get('type', 'any')}{limits}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value is None or value == [] else str(value)
