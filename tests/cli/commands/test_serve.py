"""`compress serve`, as its users meet it, with an engine made up here and one that is real."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from made_up_engine import install

from compress.cli.app import main
from compress.cli.commands.serve import serve
from compress.formats.errors import UsageError
from compress.recipes.jobs.export import export
from compress.recipes.jobs.serve import free_port

PROMPT = {"prompt": "The quick brown", "max_tokens": 4, "temperature": 0}


@pytest.fixture
def gguf(tiny_llama: Path, tmp_path: Path) -> str:
    return export(str(tiny_llama), "gguf", {"type": "f16"}, tmp_path / "gguf").path


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `llama-server` on PATH that is made up."""
    program = install(tmp_path / "bin" / "llama-server")
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return program


def once_it_answers(port: int, act: Callable[[], object], seconds: int = 120) -> threading.Thread:
    """Do something as soon as a server there is well; in a thread, for `main` does not return before."""

    def wait() -> None:
        for _ in range(10 * seconds):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
                    if reply.status == 200:
                        break
            except OSError:
                pass
            time.sleep(0.1)
        time.sleep(0.5)  # the command sees it, too, and says so
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_says_where_and_by_what_and_ends_as_the_engine_does(
    gguf: str, engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port("127.0.0.1", 0)
    once_it_answers(port, interrupt)
    assert main(["serve", gguf, "--port", str(port), "--context", "64"]) == 5
    shown = capsys.readouterr()
    url, curl, chosen, command = shown.out.splitlines()
    assert url == f"http://127.0.0.1:{port}/v1"
    assert curl.startswith(f"curl {url}/completions ") and '-d \'{"model": "/' in curl
    assert "llama.cpp" in chosen and "gguf" in chosen
    assert command.split()[1] == str(engine) and command.endswith(f"--port {port} --ctx-size 64")
    assert "draining after SIGTERM" in shown.err
    assert "Traceback" not in shown.err


def test_with_json_one_object_is_all_even_if_the_engine_dies(
    gguf: str, engine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES", "3")
    assert main(["serve", gguf, "--port", "0", "--json"]) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["engine"] == "llama.cpp" and found["command"][0] == str(engine) and found["pid"] > 1
    assert "error: llama.cpp ended with exit status 7; it is not started again" in shown.err


def test_one_that_does_not_come_up(
    gguf: str, engine: Path, failure: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUTE", "1")
    assert main(["serve", gguf, "--port", "0", "--timeout", "1", "--json"]) == 1
    assert "did not answer within 1 s" in failure()["message"]


def test_a_dry_run_starts_nothing(gguf: str, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", gguf, "--port", "0", "--dry-run", "--json", "--parallel", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"][-2:] == ["--parallel", "2"] and "pid" not in found and found["why"]


def test_what_cannot_be_is_refused_before_an_engine_is_looked_for(
    gguf: str, tmp_path: Path, failure: Callable[[], dict[str, Any]]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", str(tmp_path / "none"), "--port", str(taken.getsockname()[1]), "--json"]) == 3
    assert "Address already in use" in failure()["message"]
    assert main(["serve", gguf, "--port", "0", "--engine", "vlm", "--json"]) == 2
    assert "did you mean 'vllm'" in failure()["message"]
    assert main(["serve", gguf, "--port", "0", "--engine", "vllm", "--json"]) == 3
    assert "GGUF left vLLM" in failure()["message"]
    with pytest.raises(UsageError, match="--host is empty"):
        serve(gguf, host="")


def test_who_may_reach_it_is_told(gguf: str, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port("0.0.0.0", 0)
    once_it_answers(port, interrupt)
    assert main(["serve", gguf, "--host", "0.0.0.0", "--port", str(port)]) == 5
    assert "note: whoever reaches 0.0.0.0 may use it" in capsys.readouterr().err


def test_behind_a_gateway_with_a_key(
    gguf: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], failure: Callable[[], dict[str, Any]]
) -> None:
    pytest.importorskip("fastapi", reason="the gateway's packages are missing: pip install compress-llm[gateway]")
    key, port, found = tmp_path / "key", free_port("127.0.0.1", 0), []
    assert main(["serve", gguf, "--port", str(port), "--key-file", str(key), "--json"]) == 2
    assert "key" in failure()["message"]
    key.write_text("secret\n")

    def ask() -> None:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": "Bearer secret"})) as reply:
            found.append(reply.read().decode())
        interrupt()

    once_it_answers(port, ask)
    options = ["--key-file", str(key), "--queue", "3", "--time-limit", "60", "--restarts", "1", "--host", "0.0.0.0"]
    assert main(["serve", gguf, "--port", str(port), *options]) == 5
    shown = capsys.readouterr()
    url, curl, _, command = shown.out.splitlines()
    assert url == f"http://127.0.0.1:{port}/v1" and "Bearer $KEY" in curl
    assert "--host 127.0.0.1" in command and f"--port {port}" not in command
    assert "compress_gateway_engine_up 1.0" in found[0]
    assert "whoever reaches" not in shown.err and "secret" not in shown.out + shown.err


def served(name: str, artifact: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit status of the command, told to end while it answers, and what it answered."""
    port, replies = free_port("127.0.0.1", 0), []

    def ask() -> None:
        body = json.dumps({**PROMPT, "model": artifact}).encode()
        url, headers = f"http://127.0.0.1:{port}/v1/completions", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as reply:
            replies.append(json.load(reply))
        interrupt()

    once_it_answers(port, ask, 800)
    status = main(["serve", artifact, "--engine", name, "--port", str(port), *options])
    return status, replies


@pytest.mark.engine
@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
def test_a_real_engine_serves(name: str, gguf: str, tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip({"llama.cpp": "xllamacpp", "transformers": "openai"}[name])
    artifact = gguf if name == "llama.cpp" else str(tiny_llama)
    status, replies = served(name, artifact)
    assert status in (0, 143)
    assert replies[0]["choices"][0]["text"] and replies[0]["usage"]["completion_tokens"] == 4
    shown = capsys.readouterr().out
    assert "http://127.0.0.1:" in shown and f'"model": "{artifact}' in shown


@pytest.mark.engine
@pytest.mark.timeout(900)  # to import it takes minutes where a machine is busy
@pytest.mark.skipif(which("vllm") is None, reason="no vllm on PATH: make conformance puts one there")
def test_vllm_serves(make_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In an environment of its own, which is found beside the program; heads as wide as its kernels take them."""
    artifact = str(make_model(tmp_path / "model", "qwen3"))
    status, replies = served("vllm", artifact, "--context", "128", "--parallel", "2")
    assert status == 0
    assert replies[0]["usage"]["completion_tokens"] == 4  # parts of characters, of a model that learned nothing
    assert "--max-model-len 128" in capsys.readouterr().out
