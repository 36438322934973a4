"""pydantic's complaints in a recipe's own words: the YAML line, the option, the nearest valid key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compress.formats.errors import UsageError, suggest
from compress.recipes.yaml import Document, Path

M = TypeVar("M", bound=BaseModel)

# What the list branch of a union says of a value that was never meant to be a list.
_SHAPES = {"tuple_type", "list_type", "dict_type", "model_type"}
_WORD = re.compile(r"'([^']+)'")
_FEW = 8
"""So many words are all said, to choose from."""


@dataclass(frozen=True)
class _Problem:
    """One complaint: where in the data, and pydantic's details."""

    where: Path
    detail: ErrorDetails


class Complaints:
    """What is wrong with a recipe, gathered so that all of it is said at once."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._found: list[tuple[Path, str, str]] = []

    def add(self, path: Path, text: str, hint: str = "") -> None:
        """Complain of what stands at `path`."""
        self._found.append((path, _sentence(self._document.where(path), path, text), hint))

    def validate(self, model: type[M], data: Any, path: Path, more_keys: Iterable[str] = ()) -> M | None:
        """`data`, which stands at `path`, as a `model`; None, and a complaint for every problem, if it is none.

        Types are strict (`bits: "4"` and `bits: true` are no integers). `more_keys` are valid beside the model's
        own.
        """
        try:
            # Strict JSON mode still turns lists into tuples and words into enums; strict Python mode does not.
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            problems = [_Problem(_locate(detail, data), detail) for detail in error.errors(include_url=False)]
            keys = _keys(model, more_keys)
            for group in _by_option(problems):
                where, line = _line(group, keys, self._document, path)
                self._found.append((where, line, ""))
            return None

    def refuse(self) -> None:
        """Raise UsageError with one line per complaint, in the order of the text; nothing if there is none."""
        if self._found:
            order = {path: number for number, path in enumerate(self._document.places)}
            found = sorted(self._found, key=lambda complaint: _rank(order, complaint[0]))
            hints = dict.fromkeys(hint for _, _, hint in found if hint)
            raise UsageError("\n".join(dict.fromkeys(line for _, line, _ in found)), "; ".join(hints))


def _rank(order: Mapping[Path, int], path: Path) -> int:
    """Where in the text `path` stands, or its nearest ancestor that the text holds."""
    return next((order[path[:depth]] for depth in range(len(path), -1, -1) if path[:depth] in order), -1)


def spell(path: Path) -> str:
    """`("passes", 1, "gptq", "bits")` as `passes[1].gptq.bits`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _locate(detail: ErrorDetails, data: Any) -> Path:
    """The part of pydantic's location that the data holds: without the names of a union's branches."""
    path: list[str | int] = []
    for part in detail["loc"]:
        held = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        if part in held:
            path, data = [*path, part], data[part]
    return tuple(path)


def _keys(model: type[BaseModel], more: Iterable[str]) -> tuple[set[str], set[str]]:
    """The keys of a model, and those of the models inside it (`match` and `value`)."""
    inner = model.model_json_schema().get("$defs", {}).values()
    return {*model.model_fields, *more}, {key for schema in inner for key in schema.get("properties", {})}


def _by_option(problems: Sequence[_Problem]) -> Iterator[list[_Problem]]:
    """Problems of one option together; of a union's branches the one that came furthest is meant."""
    for option in dict.fromkeys(problem.where[:1] for problem in problems):
        group = [problem for problem in problems if problem.where[:1] == option]
        deepest = max((problem.where for problem in group), key=len)
        yield [problem for problem in group if problem.where == deepest]


def _line(
    problems: Sequence[_Problem], keys: tuple[set[str], set[str]], document: Document, path: Path
) -> tuple[Path, str]:
    """Where the problems of one option are, and the sentence about them."""
    first = problems[0]
    kind, where = first.detail["type"], (*path, *first.where)
    if kind == "extra_forbidden":
        key = str(where[-1])
        text = f"unknown option '{key}'{suggest(key, keys[len(first.where) > 1])}"
        return where, _sentence(document.where(where), where[:-1], text)
    if kind == "missing":
        return where, _sentence(document.where(where), where, f"the option '{first.detail['loc'][-1]}' is missing")
    told = _words_told([problem.detail for problem in problems if problem.detail["type"] not in _SHAPES])
    told = [message.removeprefix("Value error, ").removeprefix("Input ") for message in told or [first.detail["msg"]]]
    reason = " or ".join(dict.fromkeys(told))
    if kind != "value_error":
        reason = f"{_short(first.detail['input'])} {reason}"
    return where, _sentence(document.where(where), where, reason)


def _words_told(details: Sequence[ErrorDetails]) -> list[str]:
    """What is said of a value that is to be a word: of many the nearest alone, whatever their capitals."""
    of_words = [detail for detail in details if detail["type"] == "literal_error"]
    words = [word for detail in of_words for word in _WORD.findall(detail["ctx"]["expected"])]
    if len(words) <= _FEW:
        return [detail["msg"] for detail in details]
    given = str(of_words[0]["input"])
    near = [word for word in words if word.lower() == given.lower()] or get_close_matches(given, words, n=2)
    asked = f"; did you mean {' or '.join(map(repr, near))}?" if near else f": {', '.join(words)}"
    others = [detail["msg"] for detail in details if detail["type"] != "literal_error"]
    return [f"is none of the words for it{asked}", *others]


def _sentence(place: str, where: Path, text: str) -> str:
    return ": ".join(part for part in (place, spell(where), text) if part)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
