"""The strict YAML subset, against the tables of the YAML 1.2.2 specification and against hostile text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.formats.errors import UsageError
from compress.recipes.yaml import MAX_BYTES, MAX_DEPTH, parse


def value(text: str) -> object:
    return parse(text, "r.yaml").data


# YAML 1.2.2 §10.3.2, and the words that YAML 1.1 would have turned into something else.
CORE = {
    "null": None, "~": None, "": None, "true": True, "False": False, "FALSE": False,
    "0": 0, "0o7": 7, "0x3A": 58, "-19": -19, "+12": 12, "010": 10,
    "0.": 0.0, "-0.0": -0.0, ".5": 0.5, "+12e03": 12000.0, "-2E+05": -200000.0, "1e-3": 0.001, "1E6": 1e6,
    ".inf": math.inf, "-.Inf": -math.inf, "+.INF": math.inf,
    "no": "no", "on": "on", "Yes": "Yes", "y": "y", "0b11": "0b11", "1_000": "1_000", "12:30:45": "12:30:45",
    "2026-01-01": "2026-01-01", "0o8": "0o8", "1e": "1e", ".": ".", "-": [None], "int4": "int4", "=": "=",
}  # fmt: skip


@pytest.mark.parametrize("text", CORE)
def test_scalars_follow_yaml_1_2(text: str) -> None:
    got = value(text)
    assert (type(got), got) == (type(CORE[text]), CORE[text])


def test_nan_and_quoted_scalars() -> None:
    assert math.isnan(value(".nan"))  # type: ignore[arg-type]
    assert value("'1'") == "1"
    assert value('"no"') == "no"
    assert value("|\n 12\n") == "12\n"


def test_every_value_keeps_its_line() -> None:
    document = parse(
        "model: x\npasses:\n  - gptq:\n      bits: 4\n  - export: {dialect: gguf,\n      type: q8_0}\n",
        "r.yaml",
    )
    assert document.data["passes"][1] == {"export": {"dialect": "gguf", "type": "q8_0"}}
    assert document.where(("passes", 0, "gptq", "bits")) == "r.yaml:4"
    assert document.where(("passes", 1, "export", "type")) == "r.yaml:6"
    assert document.where(("passes", 0, "gptq", "absent", "deeper")) == "r.yaml:3"
    assert document.where(("absent",)) == "r.yaml:1"


def test_an_empty_stream_is_none() -> None:
    assert value("") is None
    assert value("# only a comment\n") is None


HOSTILE = {
    "a duplicate key": ("bits: 4\nbits: 2\n", "r.yaml:2: 'bits' stands here and at r.yaml:1"),
    "a nested duplicate": ("a:\n  b: 1\n  'b': 2\n", "r.yaml:3:"),
    "a tag that runs code": ("a: !!python/object/apply:os.system ['true']\n", "r.yaml:1: the tag"),
    "a core tag": ("a: 1\nb: !!int '3'\n", "r.yaml:2: the tag"),
    "the non-specific tag": ("a: ! 3\n", "r.yaml:1: the tag"),
    "a tagged key": ("!!str a: 3\n", "r.yaml:1: a key must be"),
    "an anchor": ("a: &x 1\n", "r.yaml:1: anchors"),
    "an alias bomb": ("a: &a [x,x]\nb: [*a,*a]\n", "r.yaml:1: anchors"),
    "an unknown alias": ("a: *x\n", "r.yaml:1: anchors"),
    "an aliased key": ("a: 1\n*x : 2\n", "r.yaml:2: a key must be"),
    "a mapping as key": ("? {a: 1}\n: 2\n", "r.yaml:1: a key must be"),
    "two documents": ("a: 1\n---\nb: 2\n", "r.yaml:2: a second document"),
    "broken flow": ("a: [1, 2\nb: 3\n", "r.yaml:2: not valid YAML"),
    "a tab as indentation": ("a:\n\tb: 1\n", "r.yaml:2: not valid YAML"),
    "an undefined tag handle": ("a: !x!y 1\n", "r.yaml:1: not valid YAML"),
    "a control character": ("a: \x07\n", "r.yaml: not valid YAML"),
    "not UTF-8": (b"a: 1\nb: \xff\n", "r.yaml:2: not UTF-8"),
    "too deep, flow": ("[" * 60_000, "r.yaml:1: nested deeper"),
    "too deep, block": ("- " * 60_000, "r.yaml:1: nested deeper"),
    "too deep, keys": ("".join(f"{' ' * i}a:\n" for i in range(100)), "nested deeper"),
    "too long": ("#" * (MAX_BYTES + 1), "a recipe has at most 262,144"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_is_one_usage_error(case: str) -> None:
    text, message = HOSTILE[case]
    with pytest.raises(UsageError) as caught:
        parse(text, "r.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_depth_limit_is_exact() -> None:
    assert value("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    with pytest.raises(UsageError):
        value("[" * (MAX_DEPTH + 1) + "x" + "]" * (MAX_DEPTH + 1))


def test_the_merge_key_is_a_word() -> None:
    assert value("<<: {a: 1}\nb: 2\n") == {"<<": {"a": 1}, "b": 2}


def test_a_huge_number_is_text() -> None:
    digits = "9" * 5000
    assert value(digits) == digits
    assert value("1e999") == math.inf


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t0123.~\\eE+x\x00", max_size=60))
def test_any_text_is_data_or_a_usage_error(text: str) -> None:
    try:
        parse(text, "r.yaml")
    except UsageError as error:
        assert str(error).startswith("r.yaml:")
