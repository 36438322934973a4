"""A model quantized without a recipe, the recipe that it stands for, and a first look at the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.cli.app import main
from compress.recipes.jobs.quantize import recipe_of, recipe_text
from compress.recipes.recipe import load


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


@pytest.mark.parametrize(("arguments", "message"), [
    (["--to", "ggfu"], "did you mean 'gguf'?"), (["--to", "gguf,"], "there is no container ''"),
    (["--to", "gguf", "--method", "gtpq"], "did you mean 'gptq'?"),
    (["--to", "gguf", "--method", "export"], "no method"),
    (["--to", "bitsandbytes", "--method", "nf4", "--bits", "4"], "--bits: nf4 has no choice of it"),
    (["--to", "gguf", "--bits", "9"], "bits"), (["--to", "gguf", "--data", "nowhere.txt"], "nowhere.txt"),
])  # fmt: skip
def test_what_cannot_be_is_said(
    arguments: list[str], message: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tiny_llama), "-q", "-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens: the model is tiny, and so shall be its texts."""
    monkeypatch.setattr("compress.recipes.jobs.quantize._TEXT", {"samples": 4, "seq_len": 32})
    held_out = {"data": "builtin", "samples": 2, "seq_len": 32}
    monkeypatch.setattr("compress.recipes.jobs.quantize._HELD_OUT", held_out)


def test_one_line_without_a_recipe(
    small: None, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["quantize", str(tiny_llama), "--to", "gguf,gptq", "--group-size", "32", "--json"]
    assert main(line) == 0
    shown = capfd.readouterr()
    paths = [artifact["path"] for artifact in json.loads(shown.out)["artifacts"]]
    assert paths == [f"out/{tiny_llama.name}-gptq-4bit/{name}" for name in ("gguf-q8_0", "gptq")]
    kept = tmp_path / "kept.yaml"
    kept.write_text("".join(text for text in shown.err.splitlines(True) if text[:1] in "mp- "))
    text = recipe_text(str(tiny_llama), ["gguf", "gptq"], group_size=32)
    assert load(str(kept)) == recipe_of(text)


def test_a_first_look_at_the_result(
    small: None, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    line = ["quantize", str(tiny_llama), "--to", "gguf", "-o", str(tmp_path / "out")]
    assert main(line) == 0
    shown = capfd.readouterr().out
    question, original, result = shown.splitlines()[-3:]
    assert question.startswith("What") and original.startswith("  original  ") and result.startswith("  gguf  ")
    assert main([*line, "-q"]) == 0
    assert "original  " not in capfd.readouterr().out


def test_an_answer_that_fails_fails_no_run(
    small: None, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no words")

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("compress.recipes.jobs.answers.generate", broken)
    assert main(["quantize", str(tiny_llama), "--to", "gguf", "-o", str(tmp_path / "out")]) == 0
    assert "note: no answer to show: RuntimeError: no words" in capfd.readouterr().err
