"""The commands on checkpoints, as their users meet them."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.cli.app import main
from compress.cli.commands import checkpoints
from compress.formats.errors import UsageError
from compress.kernels.fallbacks import count
from compress.recipes.jobs.generate import generate as generate_text


def test_plan_of_a_model_and_inspect(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_llama), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(tiny_llama), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert table["parameters"] == found["parameters"]
    assert table["cache"]["kind"] == "GQA"
    assert main(["plan", str(tiny_llama)]) == main(["inspect", str(tiny_llama)]) == 0
    shown = capsys.readouterr().out
    for word in (
        "INT4",
        "GQA",
        "batch 32",
        "model.layers.*.mlp.up_proj.weight",
        "float32",
        "×2",
        "engine or container",
    ):
        assert word in shown


def test_export(
    tiny_llama: Path, tmp_path: Path, failure: Callable[[], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(tiny_llama), "--dialect", "gguf", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--set", "type=q8_0", "--json"]) == 0
    artifact = json.loads(capsys.readouterr().out)
    assert artifact["dialect"] == "gguf"
    assert main(["inspect", artifact["path"]]) == 0
    assert "int8" in capsys.readouterr().out
    assert main([*arguments[:-1], str(tmp_path / "other"), "--set", "tipe=q8_0", "--json"]) == 2
    assert "did you mean 'type'?" in failure()["message"]


def test_generate_prints_nothing_but_the_text(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The quick brown"))
    assert main(["generate", str(tiny_llama), "-p", "-", "--max-tokens", "5", "--raw"]) == 0
    shown = capfd.readouterr()
    assert shown.out.endswith("\n") and len(shown.out) > 1
    assert shown.err == ""


def test_generate_tells_what_ran_otherwise_than_asked(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallen(path: str, prompt: str, write: Callable[[str], None], **others: object) -> None:
        write("an answer")
        count("no kernel")

    monkeypatch.setattr(sys.modules[generate_text.__module__], "generate", fallen)
    assert main(["generate", "model", "-p", "x"]) == 0
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("an answer\n", "note: no kernel (1 times)\n")


@pytest.mark.parametrize(
    ("setting", "message"), [("type", "not OPTION=VALUE"), ("=q8_0", "not OPTION=VALUE"), ("type=[1", "--set type:1")]
)
def test_options_of_a_container_are_read_before_anything_else(setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        checkpoints.export("nowhere", "gguf", tmp_path, [setting])


def test_an_interpreter_is_an_engine_s(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names the interpreter of an engine"):
        checkpoints.verify(tmp_path, python=Path(sys.executable))


def test_an_artifact_is_verified_and_a_changed_one_fails(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_llama), "--dialect", "dense", "-o", str(tmp_path / "out"), "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    assert main(["verify", path]) == 0
    assert "passed" in capsys.readouterr().out
    (Path(path) / "generation_config.json").write_text("{}")
    assert main(["verify", path, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert {problem["where"].partition(":")[0] for problem in found["problems"]} == {"generation_config.json"}
