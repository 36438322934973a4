"""A page a pass: its docstrings, its options, and what docs/passes says of when to use it."""

from __future__ import annotations

import inspect
import sys

from of_options import table

from compress.passes import get, names, summaries

__all__ = ["index", "names", "page"]


def index() -> str:
    """What there is, and what each is for."""
    rows = [f"| [`{name}`]({name}.md) | {text} |" for name, text in summaries().items()]
    head = "A recipe is a list of these, in order. The file `passes/NAME.py` is the whole of a method."
    return "\n".join(["# Passes", "", head, "", "| pass | what it does |", "|---|---|", *rows, ""])


def page(name: str, written: str) -> str:
    """The page of one; `written` is its part that is about using it."""
    kind = get(name)
    module = sys.modules[kind.__module__]
    parts = [
        f"# {name}",
        inspect.cleandoc(kind.__doc__ or ""),
        written.strip(),
        "## Options",
        table(kind.model_json_schema()),
        "## What it computes",
        inspect.cleandoc(module.__doc__ or ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
