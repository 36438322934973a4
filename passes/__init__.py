"""The methods: one file each. The file's name is the recipe key, so `ls passes/` is the list."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from compress.formats import outline
from compress.formats.errors import UsageError, suggest

if TYPE_CHECKING:
    from compress.passes.core.base import Pass


def names() -> list[str]:
    """The recipe keys of all passes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def summaries() -> dict[str, str]:
    """What each pass is for, in a line, read from the files: nothing is imported."""
    files = {name: Path(root, f"{name}.py") for root in __path__ for name in names()}
    return {name: outline.summary(outline.class_of(file, name)) for name, file in files.items() if file.is_file()}


def get(name: str) -> type[Pass]:
    """The pass of a recipe key. Raises UsageError naming the nearest key if there is none."""
    from compress.passes.core.base import Pass

    if name not in names():
        raise UsageError(f"there is no pass '{name}'{suggest(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Pass) and value.__module__ == module.__name__
    ]
    (only,) = found
    return only
