"""`--set KEY=VALUE` changes one value, and later messages about it name the command line."""

from __future__ import annotations

from typing import Any

import pytest

from compress.formats.errors import UsageError
from compress.recipes.overrides import override
from compress.recipes.recipe import load
from compress.recipes.yaml import parse

OVERRIDES: dict[str, tuple[str, Any]] = {
    "seed=7": ("seed", 7),
    "model=other": ("model", "other"),
    "gptq.bits=3": ("bits", 3),
    "passes.1.gptq.bits=3": ("bits", 3),
    "gptq.damp=1e-3": ("damp", 1e-3),
    "gptq.symmetric=false": ("symmetric", False),
    "gptq.bits.1.value=5": ("bits.1", 5),
}


@pytest.mark.parametrize("change", OVERRIDES)
def test_overrides(good: str, change: str, write: Any) -> None:
    name, value = OVERRIDES[change]
    recipe = load(write(good), [change])
    found = {**recipe.model_dump(), **dict(recipe.passes[1])}
    got = found["bits"][1].value if name == "bits.1" else found[name]
    assert (got, type(got)) == (value, type(value))


def test_overrides_make_what_is_absent(write: Any) -> None:
    recipe = load(write("model: x\npasses:\n  - evaluate:\n"), ["evaluate.samples=3", "gates.max_kl=0.5"])
    assert recipe.passes[0].samples == 3  # type: ignore[attr-defined]
    assert recipe.gates.max_kl == 0.5


WRONG_OVERRIDES = {
    "gptq.bist=3": "--set gptq.bist: passes[1].gptq: unknown option 'bist'; did you mean 'bits'?",
    "gptq.bits=x": "--set gptq.bits: passes[1].gptq.bits: \"x\" should be a valid integer",
    "gtpq.bits=3": "--set gtpq.bits: no such key; did you mean 'gptq'?",
    "passes.9.gptq.bits=3": "--set passes.9.gptq.bits: there is no passes[9] in the recipe",
    "passes.x=3": "--set passes.x: there is no passes.x in the recipe",
    "seed.x=1": "--set seed.x: seed: {\"x\": 1} should be a valid integer",
    "seed": "--set seed: not KEY=VALUE",
    "=3": "--set =3: not KEY=VALUE",
    "gptq.bits=[1": "--set gptq.bits:1: not valid YAML",
    "gptq.bits=&a 3": "--set gptq.bits:1: anchors",
    f"passes.{'9' * 5000}=1": "--set passes.9",
}  # fmt: skip


@pytest.mark.parametrize("change", WRONG_OVERRIDES, ids=lambda change: change[:20])
def test_wrong_overrides(good: str, change: str, write: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(good), [change])
    assert str(caught.value).startswith(WRONG_OVERRIDES[change])


def test_an_override_that_could_mean_two_passes(good: str, write: Any) -> None:
    text = good.replace("  - evaluate:\n", "  - evaluate:\n  - gptq: {}\n")
    with pytest.raises(UsageError, match="2 passes are called gptq") as caught:
        load(write(text), ["gptq.bits=3"])
    assert caught.value.hint == "say which: passes.1.gptq, passes.3.gptq"
    assert load(write(text), ["passes.3.gptq.bits=3"]).passes[3].bits == 3  # type: ignore[attr-defined]


def test_messages_after_an_override_still_know_the_lines(good: str, write: Any) -> None:
    with pytest.raises(UsageError, match=r"recipe\.yaml:7: .*'group_szie'"):
        load(write(good.replace("group_size", "group_szie")), ["gptq.bits=3"])


def test_a_text_keeps_its_own_value_and_its_other_places() -> None:
    before = parse("a: {x: 1, y: 2}\nb: 3", "r.yaml")
    after = override(before, "a.x=7", ["a", "b"])
    assert (before.data, after.data) == ({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"x": 7, "y": 2}, "b": 3})
    assert after.where(("a", "x")) == "--set a.x" and after.where(("b",)) == "r.yaml:2"
    assert after.where(("a", "y")) == "r.yaml:1"


def test_what_stood_in_a_value_that_is_replaced_has_no_line_any_more() -> None:
    after = override(parse("a: {x: {y: 1}}", "r.yaml"), "a.x={y: 2}", ["a"])
    assert after.data == {"a": {"x": {"y": 2}}}
    assert after.where(("a", "x", "y")) == "--set a.x"


@pytest.mark.parametrize(("change", "data"), [
    ("a.b.c=1", {"a": {"b": {"c": 1}}}), ("a.0=1", None), ("a.b.0=1", None),
])  # fmt: skip
def test_maps_on_the_way_are_made_and_items_of_lists_are_not(change: str, data: Any) -> None:
    document = parse("a:", "r.yaml")
    if data is None:
        with pytest.raises(UsageError, match="in the recipe"):
            override(document, change, ["a"])
    else:
        assert override(document, change, ["a"]).data == data
