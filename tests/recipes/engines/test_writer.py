"""An engine that stays loaded: it writes again and again, and how it ends is told."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest
from made_up_writer import asked, install

from compress.formats.errors import CompressError
from compress.recipes.engines.writer import Writer

OPTIONS = {"threads": 1, "context": 32, "parallel": 2, "draft": None}


def test_it_writes_as_often_as_it_is_asked(tmp_path: Path) -> None:
    python = install(tmp_path)
    with closing(Writer("it", python, tmp_path / "model", OPTIONS)) as writer:
        assert writer.versions == {"made-up": "1"}
        for count, tokens in ((1, 3), (2, 2)):
            done = writer.write([[5, 6]] * count, tokens)
            assert done.peak_bytes == 1 << 20
            assert [[number for _, number in stream] for stream in done.arrivals] == [[*range(1, tokens + 1)]] * count
    assert asked(python) == ["model 1 3", "model 2 2"]


def test_its_last_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIES", "model")
    with closing(Writer("it", install(tmp_path), tmp_path / "model", OPTIONS)) as writer:
        writer.write([[1]], 2)
        writer.write([[1]], 2)
        for _ in range(2):
            with pytest.raises(CompressError, match=r"^it: ValueError: out of luck$"):
                writer.write([[1]], 2)
    monkeypatch.setenv("MISSING", "it")
    with pytest.raises(CompressError, match=r"^it: ModuleNotFoundError: No module named 'it'$"):
        Writer("it", install(tmp_path), tmp_path, OPTIONS)


def test_one_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 100 &\nsleep 100\n")
    python.chmod(0o755)
    with pytest.raises(CompressError, match=r"^it: did not answer within 1 s$"):
        Writer("it", python, tmp_path, OPTIONS, timeout=1)


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"python does not start: No such file"):
        Writer("it", tmp_path / "python", tmp_path, OPTIONS)


def test_an_engine_s_own_script_is_asked(tmp_path: Path) -> None:
    """By launch.py itself, of an engine that cannot load what is there."""
    pytest.importorskip("xllamacpp")
    with pytest.raises(CompressError, match=r"^llama_cpp: "):
        Writer("llama_cpp", Path(sys.executable), tmp_path / "none.gguf", OPTIONS)
