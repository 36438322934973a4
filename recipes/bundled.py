"""The recipes that come with the program: the YAML files beside this module."""

from __future__ import annotations

from pathlib import Path

from compress.formats.errors import UsageError, suggest

_DIRECTORY = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Their names, as `compress run NAME` takes them."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("*.yaml")))


def read(name: str) -> bytes:
    """The text of one of `names`. Raises UsageError, with the nearest name, for any other."""
    if name not in names():
        raise UsageError(f"no recipe '{name}' comes with the program{suggest(name, names())}")
    return (_DIRECTORY / f"{name}.yaml").read_bytes()


def summaries() -> dict[str, str]:
    """What each is for: the first line of its text, a comment."""
    return {name: read(name).decode().partition("\n")[0].removeprefix("# ") for name in names()}
