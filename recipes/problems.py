"""pydantic's complaints in a recipe's own words: the YAML line, the option, the nearest valid key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compress.formats.errors import UsageError, suggest
from compress.recipes.yaml import Document, Path

M = TypeVar("M", bound=BaseModel)

# What the list branch of a union says of a value that was never meant to be a list.
_SHAPES = {"tuple_type", "list_type", "dict_type", "model_type"}


@dataclass(frozen=True)
class _Problem:
    """One complaint: where in the data, and pydantic's details."""

    where: Path
    detail: ErrorDetails


def validate(model: type[M], data: Any, document: Document, path: Path, more_keys: Iterable[str] = ()) -> M:
    """`data`, which stands at `path` of `document`, as a `model`.

    Types are strict (`bits: "4"` and `bits: true` are no integers). `more_keys` are valid beside the model's
    own. Raises UsageError with one line per problem.
    """
    try:
        # Strict JSON mode still turns lists into tuples and words into enums; strict Python mode does not.
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = [_Problem(_locate(detail, data), detail) for detail in error.errors(include_url=False)]
        keys = _keys(model, more_keys)
        lines = dict.fromkeys(_line(group, keys, document, path) for group in _by_option(problems))
        raise UsageError("\n".join(lines)) from None


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


def _line(problems: Sequence[_Problem], keys: tuple[set[str], set[str]], document: Document, path: Path) -> str:
    first = problems[0]
    kind, where = first.detail["type"], (*path, *first.where)
    if kind == "extra_forbidden":
        where, key = where[:-1], str(where[-1])
        text = f"unknown option '{key}'{suggest(key, keys[len(first.where) > 1])}"
        return _sentence(document.where((*where, key)), where, text)
    if kind == "missing":
        return _sentence(document.where(where), where, f"the option '{first.detail['loc'][-1]}' is missing")
    told = [problem.detail["msg"] for problem in problems if problem.detail["type"] not in _SHAPES]
    told = [message.removeprefix("Value error, ").removeprefix("Input ") for message in told or [first.detail["msg"]]]
    reason = " or ".join(dict.fromkeys(told))
    if kind != "value_error":
        reason = f"{_short(first.detail['input'])} {reason}"
    return _sentence(document.where(where), where, reason)


def _sentence(place: str, where: Path, text: str) -> str:
    return ": ".join(part for part in (place, spell(where), text) if part)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
