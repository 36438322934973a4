"""Recipes and containers: keys and options from their schemas, and the recipes that come with the program."""

from __future__ import annotations

import inspect

from of_options import table

from compress.formats import dialects
from compress.recipes import bundled
from compress.recipes.gates.limits import Gates
from compress.recipes.recipe import Recipe


def reference() -> str:
    """The keys of a recipe, its gates, and all that are bundled."""
    parts = [
        "# Recipes",
        "`compress schema` prints the JSON Schema of these keys and of every pass, for editors.",
        table(Recipe.model_json_schema()),
        "## Gates",
        inspect.cleandoc(Gates.__doc__ or ""),
        table(Gates.model_json_schema()),
        "# Recipes that come with it",
        "`compress run NAME` runs one, `compress init my.yaml --from NAME` writes it down to change.",
    ]
    for name in bundled.names():
        parts += [f"## {name}", f"```yaml\n{bundled.read(name).decode().strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def containers() -> str:
    """Every container with what loads it."""
    parts = ["# Containers", "Options of `export: {dialect: NAME}`, and of `compress export --set`."]
    for name, kind in sorted(dialects().items()):
        lines = [f"- {engine}: `{line}`" for engine, line in kind.loads.items()]
        parts += [f"## {name}", inspect.cleandoc(kind.__doc__ or ""), table(kind.model_json_schema()), "\n".join(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"
