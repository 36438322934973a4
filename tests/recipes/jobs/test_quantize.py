"""A model, a method and containers make a recipe that anybody could have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.formats.errors import UsageError
from compress.recipes.jobs.quantize import folder_of, recipe_of, recipe_text


def asked(text: str) -> list[str]:
    return [step.name for step in recipe_of(text).passes]


def test_the_recipe_of_a_line() -> None:
    text = recipe_text("org/name", ["gguf", "gptq"], bits=3, group_size=64)
    assert (
        text
        == """\
model: org/name
passes:
- calibrate: {data: builtin, samples: 128, seq_len: 512}
- gptq: {bits: 3, group_size: 64, correct: true, tune: true}
- evaluate: {data: builtin, samples: 8, seq_len: 512}
- export: {dialect: gguf, type: q8_0}
- export: {dialect: gptq}
"""
    )


def test_what_a_method_needs_is_in_its_recipe() -> None:
    assert asked(recipe_text("x", ["gptq"], method="rtn")) == ["rtn", "evaluate", "export"]
    assert asked(recipe_text("x", ["awq"], method="awq", data="t.txt")) == ["calibrate", "awq", "evaluate", "export"]
    assert "nf4: {}" in recipe_text("x", ["bitsandbytes"], method="nf4")
    assert "group_size: 32" in recipe_text("x", ["gguf"])
    assert "group_size" not in recipe_text("x", ["gptq"])


@pytest.mark.parametrize(("options", "folder"), [
    ({"bits": 3}, "name-gptq-3bit"), ({"method": "rtn"}, "name-rtn-4bit"), ({"method": "nf4"}, "name-nf4"),
])  # fmt: skip
def test_each_model_method_and_number_of_bits_has_a_folder(options: dict[str, object], folder: str) -> None:
    assert folder_of(recipe_of(recipe_text("org/name", ["dense"], **options))) == Path("out", folder)  # type: ignore[arg-type]


def test_a_choice_that_a_method_does_not_have_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="--group-size: nf4 has no choice of it") as refused:
        recipe_text("x", ["bitsandbytes"], method="nf4", group_size=64)
    assert refused.value.hint == "leave --group-size out: compress passes nf4"
