"""`--help` in colours: headings and options stand out. Where nobody looks at a terminal, Typer takes them off again."""

from __future__ import annotations

import os
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_HEADING = re.compile(r"^(Usage|Arguments|Options|Commands):", re.MULTILINE)
_FIRST_WORDS = re.compile(r"^  (-{1,2}[\w-]+(?:, -{1,2}[\w-]+)*|[a-z][\w-]*(?=  ))", re.MULTILINE)
"""What stands first on the lines below a heading: an option with its short form, or a command."""


class Command(TyperCommand):
    """A command whose help is coloured."""

    def get_help(self, ctx: Any) -> str:
        return coloured(super().get_help(ctx))


class Group(TyperGroup):
    """A group of commands whose help is coloured."""

    def get_help(self, ctx: Any) -> str:
        return coloured(super().get_help(ctx))


def coloured(text: str) -> str:
    """`text` with colours, unless the user wants none (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    text = _HEADING.sub(lambda found: typer.style(found[0], bold=True), text)
    return _FIRST_WORDS.sub(lambda found: f"  {typer.style(found[1], fg='cyan')}", text)
