"""What there is: names and options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from compress.cli.terminal.tables import new_table

_VARIES = "may vary"
_HOW_IT_VARIES = (
    'Where an option may vary, modules get their own values by name: {"*.down_proj": 8, default: 4}, '
    'or [{match: "*.down_proj", value: 8}, {value: 4}]'
)


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
    varies = any(_VARIES in str(cell) for cell in table.columns[1].cells)
    return [schema.get("description", ""), table, *([_HOW_IT_VARIES] if varies else [])]


def type_name(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON Schema's type in a few words: `integer 2…8, may vary`."""
    if "$ref" in schema:
        return type_name(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return _either(schema["anyOf"], definitions)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"a list of {type_name(schema.get('items', {}), definitions)}"
    if properties := schema.get("properties"):
        return f"{{{', '.join(properties)}}}"
    low = schema.get("minimum", schema.get("exclusiveMinimum", ""))
    high = schema.get("maximum", schema.get("exclusiveMaximum", ""))
    limits = f" {low}…{high}" if (low, high) != ("", "") else ""
    return f"{schema.get('type', 'any')}{limits}"


def _either(branches: Sequence[Mapping[str, Any]], definitions: Mapping[str, Any]) -> str:
    """One of several types. Rules, as a list and as a map, only say that the option may vary."""
    plain = [part for part in branches if part.get("type") != "null" and not _is_rules(part, definitions)]
    kinds = dict.fromkeys(type_name(part, definitions) for part in plain)
    words = all({"enum", "const"} & set(part) for part in plain)
    varies = f", {_VARIES}" if any(_is_rules(part, definitions) for part in branches) else ""
    return (" | " if words else " or ").join(kinds) + varies


def _is_rules(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    inner = definitions.get(schema.get("items", {}).get("$ref", "").rpartition("/")[2], {})
    return "match" in inner.get("properties", {}) or "additionalProperties" in schema


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value is None or value == [] else str(value)
