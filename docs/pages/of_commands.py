"""The command line on the site: `--help` as it is, and whether what pages tell users to type exists."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import typer

from compress.cli.app import app, main

_BLOCK = re.compile(r"^```(?:console|sh|bash|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(compress [^`]+)`(?!`)")
_TYPED = re.compile(r"(?<![\w./-])compress ((?:[a-z]+\b|--[a-z]).*)")
_OPTION = re.compile(r"(?<!\S)(--?[a-z][a-z-]*)(?=$|[\s=])")
_ANOTHER = re.compile(r"\s(?:&&|\||;)\s")
_COMMENT = re.compile(r"(?:^|\s)#\s.*")


def reference() -> str:
    """Every command with what `--help` says of it."""
    parts = ["# Commands", "What `--help` says.", _help()]
    for name in _commands():
        parts += [f"## compress {name}", _help(name)]
    return "\n\n".join(parts) + "\n"


def check(markdown: str) -> None:
    """Raises ValueError for a command in a page's code that there is not, or that lacks an option given to it."""
    for typed in _typed(markdown):
        first, *_ = typed.split()
        command = _group() if first.startswith("-") else _commands().get(first)
        if command is None:
            raise ValueError(f"there is no command compress {first}: `compress {typed}`")
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for option in _OPTION.findall(typed):
            if option not in known:
                raise ValueError(f"compress {first} has no {option}: `compress {typed}`")


def _typed(markdown: str) -> Iterator[str]:
    """What follows `compress` in consoles, workflows and within lines."""
    lines = [line for block in _BLOCK.findall(markdown) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *_INLINE.findall(markdown)]:
        for part in _ANOTHER.split(_COMMENT.sub("", line)):
            yield from (found[1] for found in _TYPED.finditer(part))


@cache  # Typer builds all commands anew each time
def _group() -> Any:
    return typer.main.get_command(app)


def _commands() -> Mapping[str, Any]:
    commands: Mapping[str, Any] = _group().commands
    return commands


def _help(*arguments: str) -> str:
    said = io.StringIO()
    with redirect_stdout(said):
        main([*arguments, "--help"])
    return f"```text\n{said.getvalue().strip()}\n```"
