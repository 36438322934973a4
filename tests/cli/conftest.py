"""A recipe on a tiny model, and what a failed command prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
model: {model}
passes:
  - calibrate: {{data: {corpus}, samples: 8, seq_len: 32}}
  - gptq: {{bits: 8, group_size: 32}}
  - evaluate: {{data: {held_out}, samples: 2, seq_len: 32}}
  - export: {{dialect: gguf}}
gates: {{max_kl: {gate}}}
"""


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path, held_out: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny_llama, corpus=corpus, held_out=held_out, gate=5))
    return path


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    """failure() → what a failed command with --json printed: one object, and the same message for people."""

    def told() -> dict[str, Any]:
        shown = capsys.readouterr()
        error: dict[str, Any] = json.loads(shown.out)["error"]
        assert error["message"]
        assert error["message"].splitlines()[0] in shown.err
        assert "Traceback" not in shown.err
        return error

    return told


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands keep for the next one is kept in a folder of the test's own."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
