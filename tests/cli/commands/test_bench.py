"""`compress bench`, as its users meet it, with an engine made up here and one that is real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_writer import install

from compress.cli.app import main
from compress.cli.commands.bench import bench
from compress.recipes.jobs.export import export

FEW = ["--prompt-tokens", "16", "--tokens", "4", "--rounds", "2", "--threads", "1"]


def test_one_object_with_everything(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = install(tmp_path / "bin")
    more = ["--python", str(python), "--concurrency", "1", "--concurrency", "2", "--json"]
    assert main(["bench", str(tiny_llama), *FEW, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["concurrency"] for row in found["timed"]] == [1, 2]
    assert found["timed"][0]["pace"]["decode"] == pytest.approx(100)
    assert (found["prompt_tokens"], found["tokens"], found["rounds"], found["threads"]) == (16, 4, 2, 1)


def test_an_engine_that_is_none(tiny_llama: Path, failure: Callable[[], dict[str, Any]]) -> None:
    assert main(["bench", str(tiny_llama), "--engine", "llama", "--json"]) == 2
    assert "did you mean 'llama_cpp'" in failure()["message"]
    assert main(["bench", str(tiny_llama), "--url", "http://127.0.0.1:1", "--draft", "x", "--json"]) == 2
    assert "--url times one PATH" in failure()["message"]
    assert bench.__doc__


@pytest.mark.engine
def test_llama_cpp_writes_alone_and_with_a_draft(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp")
    gguf = export(str(tiny_llama), "gguf", {"type": "f16"}, tmp_path / "gguf").path
    more = ["--engine", "llama.cpp", "--draft", gguf, "--concurrency", "2", "--json"]
    assert main(["bench", gguf, *FEW, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["untimed"] == [] and [row["draft"] for row in found["timed"]] == [None, gguf]
    assert all(row["pace"]["decode"] > 0 and row["pace"]["peak_bytes"] > 1 << 20 for row in found["timed"])
    assert "xllamacpp" in found["timed"][0]["versions"]
