"""A model quantized without a recipe: one line does what the recipe does that it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.cli.app import main
from compress.recipes.jobs.quantize import recipe_of, recipe_text
from compress.recipes.recipe import load


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
