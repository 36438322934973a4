"""Options that vary from module to module: rules, their short form, and which names a pattern means."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.formats.options import Match, PerTensor, matches, resolve

DOWN, UP, HEAD = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj", "lm_head"


class Options(BaseModel):
    model_config = ConfigDict(frozen=True)
    bits: PerTensor[Annotated[int, Field(ge=2, le=8)]] = 4


def read(text: str) -> Options:
    """As recipes are read: strict JSON."""
    return Options.model_validate_json(text, strict=True)


@pytest.mark.parametrize(("pattern", "meant"), [
    ("down_proj", {DOWN}), ("mlp.down_proj", {DOWN}), (DOWN, {DOWN}), ("lm_head", {HEAD}), ("proj", set()),
    ("*.down_proj", {DOWN}), ("*proj", {DOWN, UP}), ("*", {DOWN, UP, HEAD}), ("model.layers.0", set()),
    ("model.layers.0.*", {DOWN, UP}), ("model.layers.[1-9].*", set()), ("*.?p_proj", {UP}), ("", set()),
])  # fmt: skip
def test_which_names_a_pattern_means(pattern: str, meant: set[str]) -> None:
    assert {name for name in (DOWN, UP, HEAD) if matches(pattern, name)} == meant


@pytest.mark.parametrize("written", [
    '{"bits": [{"match": "*.down_proj", "value": 8}, {"value": 4}]}',
    '{"bits": {"*.down_proj": 8, "default": 4}}',
    '{"bits": {"default": 4, "*.down_proj": 8}}',
])  # fmt: skip
def test_a_map_is_a_short_form_of_rules(written: str) -> None:
    options = read(written)
    assert options.bits == (Match[Any](match="*.down_proj", value=8), Match[Any](value=4))
    assert (resolve(options.bits, DOWN), resolve(options.bits, UP)) == (8, 4)
    assert options.model_dump(mode="json") == {
        "bits": [{"match": "*.down_proj", "value": 8}, {"match": None, "value": 4}]
    }
    assert read(options.model_dump_json()) == options
    assert hash(options) == hash(read(written))


def test_without_a_default_the_rest_stays_unsaid() -> None:
    assert resolve(read('{"bits": {"down_proj": 8}}').bits, UP) is None


@pytest.mark.parametrize("written", ['{"down_proj": 9}', '{"down_proj": true}', "{}", '{"down_proj": {"x": 4}}'])
def test_values_of_the_short_form_are_checked(written: str) -> None:
    with pytest.raises(ValidationError):
        read(f'{{"bits": {written}}}')


def test_the_schema_knows_the_short_form() -> None:
    schema = Options.model_json_schema()
    (alias,) = (found for name, found in schema["$defs"].items() if name.startswith("PerTensor"))
    branches = [branch for part in alias["anyOf"] for branch in part.get("anyOf", [part])]
    number = {"type": "integer", "minimum": 2, "maximum": 8}
    assert {"type": "object", "additionalProperties": number, "minProperties": 1} in branches
