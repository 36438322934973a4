"""Two JSON values, leaf by leaf: where a setting differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

Leaf = tuple[str, Any, Any]
"""`file: dotted.key`, and what either side has there; None where it has nothing."""
_LONG = 60


def differing(where: str, one: Any, other: Any) -> Iterator[Leaf]:
    """Every leaf that is not the same in both. Lists are leaves, but for those of maps."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted(one.keys() | other.keys()):
            yield from differing(_beneath(where, key), one.get(key), other.get(key))
    elif _maps(one) and _maps(other):
        for number, pair in enumerate(zip_longest(one, other)):
            yield from differing(_beneath(where, str(number)), *pair)
    elif one != other or type(one) is not type(other):
        yield where, one, other


def short(value: Any) -> str:
    """A leaf in so few words that a line holds it."""
    text = "not there" if value is None else repr(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}…"


def _beneath(where: str, key: str) -> str:
    joint = "." if ": " in where else ": " if where else ""
    return f"{where}{joint}{key}"


def _maps(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)
