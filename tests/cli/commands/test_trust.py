"""diff, replay and doctor, as their users meet them: what they print, and how they end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compress.cli.app import main
from compress.cli.commands import trust


def test_diff_exits_1_where_two_differ(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trust.diff.__doc__ and "Exits 1" in trust.diff.__doc__
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    assert main(["diff", str(tiny_llama), str(copy)]) == 0
    assert "no difference in 20 tensors" in capsys.readouterr().out
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert main(["diff", str(tiny_llama), str(copy), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["differ"] and [setting["where"] for setting in found["settings"]] == ["config.json: rms_norm_eps"]
    assert main(["diff", str(tiny_llama), "nowhere"]) == 2


def test_replay_names_what_is_missing(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_llama), "--dialect", "dense", "-o", str(tmp_path / "out"), "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    assert main(["replay", path, "-o", str(tmp_path / "new"), "--quiet"]) == 0
    assert "came out byte for byte" in capsys.readouterr().out
    shutil.rmtree(tiny_llama)
    assert main(["replay", path, "--check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["part"] for each in found["unlike"]] == ["source"] and not found["reproduced"]


def test_doctor_speaks_of_machine_and_engines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "transformers" in shown and "of memory" in shown and "gguf" in shown
