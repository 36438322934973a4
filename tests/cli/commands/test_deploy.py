"""deploy, as its users meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.cli.app import main
from compress.cli.commands import deploy


def test_it_says_what_it_wrote_and_what_that_takes(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy.deploy.__doc__ and "no file holds a secret" in deploy.deploy.__doc__
    out = tmp_path / "out"
    assert main(["deploy", str(tiny_llama), "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all((out / name).is_file() for name in found["files"]) and "compose.yaml" in found["files"]
    assert main(["deploy", str(tiny_llama), "-o", str(tmp_path / "again"), "--gpus", "2"]) == 0
    shown = capsys.readouterr().out
    assert "tiny-llama: vllm/vllm-openai" in shown and "2 GPUs" in shown and "kubectl apply -f" in shown
    assert main(["deploy", str(tiny_llama), "-o", str(out)]) == 3
