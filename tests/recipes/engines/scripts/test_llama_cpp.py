"""llama.cpp's script, with a server made up here: what it is asked, and what it keeps quiet about."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.recipes.engines.scripts import llama_cpp


class Handler(BaseHTTPRequestHandler):
    """Tokenizes anything as 65, and knows the probabilities of tokens 0 and 3."""

    asked: dict[str, Any]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.asked[self.path] = body
        top = [{"id": 3, "logprob": -0.25}, {"id": 0, "logprob": -1.5}]
        replies = {"/tokenize": {"tokens": [65]}, "/completion": {"completion_probabilities": [{"top_logprobs": top}]}}
        data = json.dumps(replies[self.path]).encode()
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
        return SimpleNamespace(
            model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
        )  # fmt: skip

    def serve(settings: Any) -> Any:
        started.append(settings)
        return SimpleNamespace(listening_address="nowhere")

    monkeypatch.setitem(sys.modules, "xllamacpp", SimpleNamespace(CommonParams=params, Server=serve))
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
        "/bin/llama-server", "-m", file, "--host", "127.0.0.1", "--port", "8123",
    ]  # fmt: skip


def test_else_the_library_does_in_a_process_of_ours(library: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    python, _, launch, *arguments = llama_cpp.command("here", 8123)
    assert python == sys.executable and Path(launch).is_file()
    assert arguments == ["llama_cpp", "here", "8123"]
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ModuleNotFoundError):
        llama_cpp.command("here", 8123)
