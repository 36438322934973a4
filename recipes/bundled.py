"""The recipes that come with the program: the YAML files beside this module."""

from __future__ import annotations

from pathlib import Path

_DIRECTORY = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Their names, as `compress run NAME` takes them."""
    return tuple(sorted(path.stem for path in _DIRECTORY.glob("*.yaml")))


def read(name: str) -> bytes:
    """The text of one of `names`."""
    return (_DIRECTORY / f"{name}.yaml").read_bytes()
