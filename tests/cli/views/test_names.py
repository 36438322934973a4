"""Options are told from their JSON Schema in a few words."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from compress.cli.views.names import names, options, type_name
from compress.formats.options import PerTensor


class Kind(Enum):
    FIRST = "first"
    SECOND = "second"


class Example(BaseModel):
    """What it is for."""

    size: int = Field(description="how many", ge=2, le=8)
    share: float = Field(0.5, gt=0.25, lt=0.75)
    kind: Literal["a", "b"] = "a"
    chosen: Kind = Kind.FIRST
    group: int | Literal["auto"] = "auto"
    some: tuple[str, ...] = ()
    limit: float | None = None
    on: bool = True
    bits: PerTensor[int] = 4


SCHEMA: dict[str, Any] = Example.model_json_schema()


@pytest.mark.parametrize(("option", "said"), [
    ("size", "integer 2…8"), ("share", "number 0.25…0.75"), ("kind", "a | b"), ("chosen", "first | second"),
    ("group", "integer or auto"), ("some", "a list of string"), ("limit", "number"), ("on", "boolean"),
    ("bits", "integer, may vary"),
])  # fmt: skip
def test_a_type_in_a_few_words(option: str, said: str) -> None:
    assert type_name(SCHEMA["properties"][option], SCHEMA["$defs"]) == said


def test_what_it_is_by_default(shown: Callable[..., list[str]]) -> None:
    lines = shown(options(SCHEMA))
    assert lines[0] == "What it is for."
    for line in ("size integer 2…8 required how many", "limit number –", "some a list of string –", "on boolean true"):
        assert line in lines
    assert lines[-1].startswith("Where an option may vary")


def test_how_options_vary_is_told_only_where_one_does(shown: Callable[..., list[str]]) -> None:
    plain = {**SCHEMA, "properties": {name: SCHEMA["properties"][name] for name in ("size", "kind")}}
    assert not any("may vary" in line for line in shown(options(plain)))


def test_names_stand_beside_what_they_are_for(shown: Callable[..., list[str]]) -> None:
    assert shown(names([("gptq", "codes"), ("rtn", "rounding")])) == ["gptq codes", "rtn rounding"]
