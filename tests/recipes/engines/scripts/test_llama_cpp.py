"""llama.cpp's script, with a server made up here: what it is asked, and what it keeps quiet about."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.recipes.engines.scripts import llama_cpp

STREAM = "".join(
    f"data: {json.dumps(event)}\n\n"
    for event in (
        {"content": "a", "timings": {"predicted_n": 1}},
        {"content": "b", "timings": {"predicted_n": 4}},  # after half a character, or what a draft had right
        {"content": "", "stop": True, "timings": {"predicted_n": 4}},
    )
).encode()


class Handler(BaseHTTPRequestHandler):
    """Tokenizes anything as 65, and knows the probabilities of tokens 0 and 3."""

    asked: dict[str, Any]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.asked[self.path] = body
        top = [{"id": 3, "logprob": -0.25}, {"id": 0, "logprob": -1.5}]
        replies = {"/tokenize": {"tokens": [65]}, "/completion": {"completion_probabilities": [{"top_logprobs": top}]}}
        data = STREAM if body.get("stream") else json.dumps(replies[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """The address of one that listens."""
    Handler.asked = {}
    with HTTPServer((llama_cpp.HOST, 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://{llama_cpp.HOST}:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_tokens_that_it_keeps_quiet_about_have_no_probability(server: str) -> None:
    assert llama_cpp.log_probabilities(server, [5, 6]) == [-1.5, None, None, -0.25]
    asked = Handler.asked["/completion"]
    assert (asked["prompt"], asked["n_predict"], asked["temperature"]) == ([5, 6], 1, 0)
    assert asked["logit_bias"] == [[65, 1000]]  # it samples a letter, whatever is likely


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings of the servers that were started of a library made up here."""
    started: list[Any] = []

    def params() -> Any:
        draft = SimpleNamespace(**{name: SimpleNamespace() for name in ("mparams", "cpuparams", "cpuparams_batch")})
        parts = {name: SimpleNamespace() for name in ("model", "cpuparams", "cpuparams_batch")}
        return SimpleNamespace(**parts, speculative=SimpleNamespace(draft=draft))

    def serve(settings: Any) -> Any:
        started.append(settings)
        return SimpleNamespace(listening_address="nowhere")

    types = SimpleNamespace(COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE="a draft")
    module = SimpleNamespace(CommonParams=params, Server=serve, common_speculative_type=types)
    monkeypatch.setitem(sys.modules, "xllamacpp", module)
    return started


@pytest.mark.parametrize(("longest", "room"), [(5, 256), (1000, 1008)])
def test_every_sequence_has_room_and_is_asked_of_one_server(
    longest: int, room: int, library: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny-Q8_0.gguf").touch()
    monkeypatch.setattr(llama_cpp, "log_probabilities", lambda address, sequence: [address, len(sequence)])
    assert llama_cpp.answer(str(tmp_path), [[1], [2] * longest]) == [["nowhere", 1], ["nowhere", longest]]
    (settings,) = library
    assert settings.model.path == str(tmp_path / "tiny-Q8_0.gguf") and settings.hostnames == ["127.0.0.1"]
    assert (settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads) == (room, 1, 1)


def test_llama_server_serves_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.gguf").touch()
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    file = str(tmp_path / "tiny.gguf")
    assert llama_cpp.command(str(tmp_path), 8123) == [
        "/bin/llama-server", "--model", file, "--host", "127.0.0.1", "--port", "8123",
    ]  # fmt: skip


def test_else_the_library_does_in_a_process_of_ours(library: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    python, _, launch, *arguments = llama_cpp.command("here", 8123)
    assert python == sys.executable and Path(launch).is_file()
    assert arguments == ["llama_cpp", "here", "8123", '{"host": "127.0.0.1"}']
    *_, options = llama_cpp.command("here", 8123, host="::1", context=512, parallel=2)
    assert json.loads(options) == {"host": "::1", "context": 512, "parallel": 2}
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ModuleNotFoundError):
        llama_cpp.command("here", 8123)


def test_a_cache_is_of_a_type_that_llama_cpp_keeps_one_in(monkeypatch: pytest.MonkeyPatch) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert llama_cpp.command("here", 8123, cache="q8_0")
    with pytest.raises(ValueError, match=r"q8_0, .*, not in 'fp8'"):
        llama_cpp.command("here", 8123, cache="fp8")
    assert all(hasattr(xllamacpp.ggml_type, f"GGML_TYPE_{name.upper()}") for name in llama_cpp._CACHES)


SERVING = """
import sys, threading
from types import SimpleNamespace
from compress.recipes.engines.scripts import llama_cpp

slots = [[{"is_processing": True}], [{"is_processing": True}], [{"is_processing": False}]]
llama_cpp._get = lambda address, path: (print("asked", address, path), slots.pop(0))[1]
made = SimpleNamespace(model=SimpleNamespace())
ready = lambda params: (threading.Timer(0.5, print, ["ready"], {"flush": True}).start(), made)[1]
made.listening_address = "there"
types = {"GGML_TYPE_Q8_0": 8}
sys.modules["xllamacpp"] = SimpleNamespace(CommonParams=lambda: made, Server=ready, ggml_type=types)
llama_cpp.serve("here", 8123, host="::1", context=512, cache="q8_0", parallel=2)
print(made.hostnames, made.port, made.n_ctx, made.n_parallel, made.cache_type_k, made.cache_type_v)
"""


def test_it_serves_until_it_is_told_and_has_answered(environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-c", SERVING]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.terminate()
        *asked, told = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert asked == ["asked there /slots"] * 3
    assert told == "['::1'] 8123 1024 2 8 8"


def test_when_its_tokens_came_is_told_by_its_own_count(server: str) -> None:
    began = time.perf_counter()
    found = llama_cpp.arrivals(server, 4, began, False, [5, 6])
    assert [number for _, number in found] == [1, 4]
    assert 0 < found[0][0] <= found[1][0] < time.perf_counter() - began
    asked = Handler.asked["/completion"]
    assert (asked["prompt"], asked["n_predict"], asked["ignore_eos"], asked["cache_prompt"]) == ([5, 6], 4, True, False)
    with pytest.raises(RuntimeError, match="wrote 4 of 5 tokens"):
        llama_cpp.arrivals(server, 5, began, False, [5, 6])
    with pytest.raises(RuntimeError, match="proposed no token: has it another vocabulary"):
        llama_cpp.arrivals(server, 4, began, True, [5, 6])


def test_a_writer_has_room_for_every_conversation_and_a_draft(library: list[Any], tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    llama_cpp.writer("here", threads=2, context=100, parallel=3, draft=str(tmp_path))
    (settings,) = library
    assert settings.n_parallel == 3 and settings.n_ctx >= 300
    assert settings.cpuparams.n_threads == settings.speculative.draft.cpuparams.n_threads == 2
    assert settings.speculative.types == ["a draft"]
    assert settings.speculative.draft.mparams.path == str(tmp_path / "tiny.gguf")
