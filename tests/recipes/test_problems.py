"""Every mistake in a recipe is named by its line and the nearest valid key, and all of them at once."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from compress.formats.errors import UsageError
from compress.recipes.problems import Complaints, spell
from compress.recipes.recipe import load
from compress.recipes.yaml import Document, parse

# The line of the recipe to replace, its replacement, and what the message must say.
MISTAKES: dict[str, tuple[str, str, str]] = {
    "an unknown option": (
        "group_size", "      group_szie: 64",
        "7: passes[1].gptq: unknown option 'group_szie'; did you mean 'group_size'?",
    ),
    "an unknown pass": ("- gptq", "  - gtpq:", "5: passes[1]: no pass 'gtpq'; did you mean 'gptq'?"),
    "an unknown key": ("gates", "gate: {}", "10: unknown option 'gate'; did you mean 'gates'?"),
    "an unknown gate": ("gates", "gates: {kl: 1}", "10: gates: unknown option 'kl'; "),
    "a key of a later day": ("gates", "serve: [vllm]", "10: unknown option 'serve'; "),
    "an unknown rule key": (
        "bits", "      bits: [{mach: a, value: 4}]",
        "6: passes[1].gptq.bits[0]: unknown option 'mach'; did you mean 'match'?",
    ),
    "an unknown dialect option": (
        "- export", "  - export: {dialect: gguf, tipe: f16}",
        "9: passes[3].export: unknown option 'tipe'; did you mean 'type'?",
    ),
    "a bad dialect option": (
        "- export", "  - export: {dialect: gguf, type: f17}",
        "9: passes[3].export.type: \"f17\" is none of the words for it; did you mean 'f16'?",
    ),
    "a word in other capitals": (
        "- export", "  - export: {dialect: gguf, type: Q4_k_m}",
        "9: passes[3].export.type: \"Q4_k_m\" is none of the words for it; did you mean 'q4_k_m' or 'Q4_K_M'?",
    ),
    "a word of a few": (
        "- export", "  - export: {dialect: gptq, dtype: f16}",
        "9: passes[3].export.dtype: \"f16\" should be 'float32', 'float16'",
    ),
    "an unknown dialect": (
        "- export", "  - export: {dialect: ggml}", "9: passes[3].export: there is no dialect 'ggml'",
    ),
    "a missing option": (
        "- export", "  - export:", "9: passes[3].export: the option 'dialect' is missing",
    ),
    "a value out of range": (
        "bits", "      bits: 9", "6: passes[1].gptq.bits: 9 should be less than or equal to 8",
    ),
    "a value in a rule out of range": (
        "bits", "      bits: [{value: 1}]",
        "6: passes[1].gptq.bits[0].value: 1 should be greater than or equal to 2",
    ),
    "text for a number": (
        "bits", "      bits: '4'", "6: passes[1].gptq.bits: \"4\" should be a valid integer",
    ),
    "truth for a number": (
        "bits", "      bits: true", "6: passes[1].gptq.bits: true should be a valid integer",
    ),
    "a number for text": ("data", "      data: 3", "4: passes[0].calibrate.data: 3 should be a valid string"),
    "a word that YAML 1.1 takes for false": (
        "group_size", "      symmetric: no", "7: passes[1].gptq.symmetric: \"no\" should be a valid boolean",
    ),
    "options that are no map": (
        "- export", "  - export: gguf", "9: passes[3].export: the options are a map",
    ),
    "a pass that is a word": ("- export", "  - export", "9: passes[3]: a pass is a map with one key"),
    "a pass with two names": (
        "- evaluate", "  - {rtn: {}, export: {}}", "8: passes[2]: a pass is a map with one key",
    ),
    "a negative gate": ("gates", "gates: {max_kl: -1}", "10: gates.max_kl: -1 should be greater"),
    "no model": ("model", "seed: 1", "1: the option 'model' is missing"),
    "an empty model": ("model", "model: ''", "1: model: \"\" "),
    "a negative seed": ("gates", "seed: -1", "10: seed: -1 should be greater"),
    "a key twice": ("group_size", "      bits: 3", "7: 'bits' stands here and at recipe.yaml:6"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(good: str, case: str, write: Any) -> None:
    start, line, message = MISTAKES[case]
    lines = [line if old.strip().startswith(start) else old for old in good.splitlines()]
    with pytest.raises(UsageError) as caught:
        load(write("\n".join(lines)))
    assert str(caught.value).startswith(f"recipe.yaml:{message}")
    assert "\n" not in str(caught.value)


def test_all_mistakes_of_one_pass_are_told_at_once(write: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(write("model: x\npasses:\n  - rtn:\n      bits: 9\n      goup_size: 1\n"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("recipe.yaml:4: passes[0].rtn.bits: 9")
    assert second.startswith("recipe.yaml:5: passes[0].rtn: unknown option 'goup_size'; did you mean 'group_size'?")


def test_all_mistakes_of_a_recipe_are_told_at_once_in_its_order(write: Any) -> None:
    text = """\
seed: -1
passes:
  - rtn: {bits: 9}
  - gtpq: {}
  - 3
  - export: {dialect: gguf, tipe: f16}
gates: {kl: 1}
"""
    with pytest.raises(UsageError) as caught:
        load(write(text), ["rtn.search=maybe"])
    told = [line.removeprefix("recipe.yaml:").partition(": ")[::2] for line in str(caught.value).splitlines()]
    told, places = [line for _, line in told], [place for place, _ in told]
    assert places == ["--set rtn.search", "1", "1", "3", "4", "5", "6", "7"]
    words = ["search", "'model' is missing", "seed: -1", "bits: 9", "did you mean 'gptq'?", "one key", "'tipe'", "'kl'"]
    assert all(word in line for word, line in zip(words, told, strict=True))
    assert caught.value.hint == "as `- gptq: {bits: 4}`"


class Rule(BaseModel, extra="forbid"):
    value: int
    match: str = "*"


class Options(BaseModel, extra="forbid"):
    bits: int | tuple[Rule, ...] = 4
    size: int = 1


def refused(document: Document, complaints: Complaints) -> list[str]:
    with pytest.raises(UsageError) as caught:
        complaints.refuse()
    return [line.removeprefix(f"{document.source}:") for line in str(caught.value).splitlines()]


def test_data_without_a_mistake_is_the_model_and_nothing_is_complained_of() -> None:
    complaints = Complaints(parse("bits: [{value: 3}]", "r.yaml"))
    found = complaints.validate(Options, {"bits": [{"value": 3}]}, ())
    assert found == Options(bits=(Rule(value=3),))
    complaints.refuse()


def test_the_branch_that_was_meant_is_the_one_that_came_furthest() -> None:
    document = parse("bits:\n- {value: 3}\n- {value: x}", "r.yaml")
    complaints = Complaints(document)
    assert complaints.validate(Options, document.data, ()) is None
    assert refused(document, complaints) == ['3: bits[1].value: "x" should be a valid integer']


def test_complaints_stand_in_the_order_of_the_text_whoever_complained_first() -> None:
    document = parse("size: x\nbits: y\nother:\n  deep: 1", "r.yaml")
    complaints = Complaints(document)
    complaints.add(("other", "deep", "deeper"), "is too deep", "dig less")  # not in the text: its parent is
    complaints.validate(Options, {"size": "x", "bits": "y"}, ())
    with pytest.raises(UsageError) as caught:
        complaints.refuse()
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "2", "4"]
    assert str(caught.value).endswith("r.yaml:4: other.deep.deeper: is too deep")
    assert caught.value.hint == "dig less"


def test_keys_that_are_valid_beside_the_model_s_own_are_offered() -> None:
    document = parse("colour_: 1", "r.yaml")
    complaints = Complaints(document)
    complaints.validate(Options, document.data, (), ["colour"])
    assert refused(document, complaints) == ["1: unknown option 'colour_'; did you mean 'colour'?"]


def test_a_long_value_is_cut() -> None:
    document = parse(f"size: {'x' * 100}", "r.yaml")
    complaints = Complaints(document)
    complaints.validate(Options, document.data, ())
    (line,) = refused(document, complaints)
    assert line == f'1: size: "{"x" * 56}… should be a valid integer'


def test_paths_are_spelled_as_they_are_typed() -> None:
    assert spell(("passes", 1, "gptq", "bits")) == "passes[1].gptq.bits"
    assert spell(()) == ""
