"""diff, as its users meet it: what it prints, and how it ends."""

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
