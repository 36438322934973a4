"""`--set KEY=VALUE`: one value of a recipe changed from the command line."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from compress.formats.errors import UsageError, suggest
from compress.recipes import yaml
from compress.recipes.problems import spell
from compress.recipes.yaml import Document

SET = "--set"
"""How places begin that are no line of the recipe but a word of the command line."""


def override(document: Document, change: str, fields: Iterable[str]) -> Document:
    """`document` with `KEY=VALUE` applied; later messages about that value name the override, not a line.

    The key is dotted; `fields` are the first words that are meant literally, any other is a pass's name.
    Raises UsageError for a key that leads nowhere.
    """
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise UsageError(f"{SET} {change}: not KEY=VALUE", "as `--set gptq.bits=3`")
    place = f"{SET} {key}"
    value = yaml.parse(text, place).data
    data = copy.deepcopy(document.data)
    path = _address(data, key.split("."), frozenset(fields), place)
    _put(data, path, value, place)
    places = {at: where for at, where in document.places.items() if at[: len(path)] != path}
    ways = (path[:depth] for depth in range(1, len(path) + 1))
    return Document(document.source, data, {**dict.fromkeys(ways, place), **places})


def _address(data: Any, words: list[str], fields: frozenset[str], place: str) -> yaml.Path:
    """The path that a dotted key means; a pass's name stands for `passes.INDEX.NAME`."""
    entries = data.get("passes") if isinstance(data, dict) else None
    if words[0] not in fields and isinstance(entries, list):
        steps = [(index, name) for index, entry in enumerate(entries) for name in _names(entry)]
        found = [index for index, name in steps if name == words[0]]
        if len(found) > 1:
            ways = ", ".join(f"passes.{index}.{words[0]}" for index in found)
            raise UsageError(f"{place}: {len(found)} passes are called {words[0]}", f"say which: {ways}")
        if not found:
            known = {*fields, *(name for _, name in steps)}
            raise UsageError(f"{place}: no such key{suggest(words[0], known)}")
        words = ["passes", str(found[0]), *words]
    return tuple(int(word) if word.isdecimal() and len(word) < 10 else word for word in words)


def _names(entry: Any) -> list[str]:
    return list(entry) if isinstance(entry, dict) else []


def _put(data: Any, path: yaml.Path, value: Any, place: str) -> None:
    """Set what stands at `path`; maps and lists on the way that are absent or null are made."""
    for depth, (part, following) in enumerate(pairwise(path), start=1):
        _require(data, part, path[:depth], place)
        if isinstance(data, dict) and data.get(part) is None:
            data[part] = {} if isinstance(following, str) else []
        data = data[part]
    _require(data, path[-1], path, place)
    data[path[-1]] = value


def _require(data: Any, part: str | int, path: yaml.Path, place: str) -> None:
    """A map takes any key, a list only an index that it has, and nothing else has parts."""
    if isinstance(data, dict) and isinstance(part, str):
        return
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return
    raise UsageError(f"{place}: there is no {spell(path)} in the recipe")
