"""Asking engines: what becomes of one that is not there, takes too long or dies, and the commands that serve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compress.formats.errors import CompressError, RefusedError, UsageError
from compress.recipes.engines import ask as engines_asked
from compress.recipes.engines import launch
from compress.recipes.engines.ask import (
    MissingPackageError,
    ask,
    ended,
    engines,
    not_installed,
    script_of,
    serving,
)

SEQUENCES = [[196, 171, 119, 86, 198], [5, 6, 7, 8, 9, 10, 11]]


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="does not start"):
        ask("vllm", tmp_path / "python", tmp_path, SEQUENCES, timeout=10)


def test_an_engine_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """And what it started with it: the pipe that its child holds open would keep us waiting."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 100 &\nsleep 100\n")
    python.chmod(0o755)
    with pytest.raises(CompressError, match="within 1 s"):
        ask("vllm", python, tmp_path, SEQUENCES, timeout=1)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -SEGV $$", "killed by SIGSEGV"),
        (
            "printf 'terminate called\\n  what():  no path\\nframe #0\\n' >&2; kill -ABRT $$",
            "killed by SIGABRT: no path",
        ),
        ("echo out of luck >&2; exit 3", "out of luck"),
        ("exit 3", "exit status 3"),
        (
            "printf '%s\\n' '[rank0]: Traceback (most recent call last):' '[rank0]:   File x' "
            "'[rank0]: x.ValidationError: 1 error' '[rank0]:   Value error, no' >&2; exit 1",
            "x.ValidationError: 1 error Value error, no",
        ),
    ],
)
def test_last_words(script: str, words: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(CompressError) as caught:
        ask("vllm", python, tmp_path, SEQUENCES, timeout=10)
    assert str(caught.value) == f"vllm: {words}"


def test_every_engine_has_a_script() -> None:
    wanted = ("auto_gptq", "bitsandbytes", "compressed_tensors", "gptqmodel", "llama_cpp", "transformers", "vllm")
    assert engines() == wanted


def test_scripts_go_by_the_engine_s_name() -> None:
    assert script_of("llama.cpp") == "llama_cpp"
    with pytest.raises(UsageError, match="did you mean 'transformers'"):
        script_of("transformer")


def test_what_is_missing_is_named_with_how_to_install_it() -> None:
    missing = ended("x", 1, "Traceback (most recent call last):\nModuleNotFoundError: No module named 'pack[extra]'")
    assert isinstance(missing, MissingPackageError)
    assert not isinstance(ended("x", 1, "OSError: No module of that name"), MissingPackageError)
    error = not_installed("x", Path("/bin/python"), missing)
    assert str(error) == "x is not installed for /bin/python: No module named 'pack[extra]'"
    assert error.hint.startswith("/bin/python -m pip install 'pack[extra]',")


def test_transformers_is_served_by_its_own_command(tmp_path: Path) -> None:
    pytest.importorskip("openai")  # of transformers[serving]
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "config.json").write_text("{}")
    found = serving("transformers", Path(sys.executable), artifact, 8123)
    assert found.command[found.command.index("serve") + 1] == found.model == str(artifact)
    (artifact / "tiny-Q8_0.gguf").touch()
    found = serving("transformers", Path(sys.executable), artifact, 8123)
    command = found.command
    assert command[command.index("serve") + 1] == found.model == f"{artifact}:tiny-Q8_0.gguf"
    shown = subprocess.run([*command[: command.index("serve") + 1], "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "force_model" in shown.stdout.lower()


def test_llama_server_is_used_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "llama-server"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "tiny.gguf").touch()
    found = serving("llama_cpp", Path(sys.executable), tmp_path, 8123)
    model = str(tmp_path / "tiny.gguf")
    assert found.command == (str(program), "--model", model, "--host", "127.0.0.1", "--port", "8123")
    assert found.model == str(tmp_path)


def test_options_that_an_engine_lacks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="transformers has no --cache, --context"):
        serving("transformers", Path(sys.executable), tmp_path, 8123, {"host": "::1", "context": 9, "cache": "q8_0"})


def test_an_engine_without_a_server_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """launch.py beside an engine that has nothing to import."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "__init__.py").touch()
    (scripts / "other.py").write_text("PACKAGES = ()")
    monkeypatch.setattr(engines_asked, "LAUNCH", Path(shutil.copy(launch.__file__, tmp_path)))
    with pytest.raises(CompressError, match="other: LookupError: it has no server"):
        serving("other", Path(sys.executable), tmp_path, 8123)
