"""The quick part of the conformance table: engines that install beside us answer for tiny artifacts.

Each runs in a process of its own, through its script in recipes/engines/; the whole table is
tests/conformance/table.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.formats import dialects, open_checkpoint
from compress.formats.errors import CompressError
from compress.passes.model.whole.loading import load_model
from compress.recipes.engines import scripts
from compress.recipes.engines.ask import ask, serving
from compress.recipes.engines.launch import versions
from compress.recipes.recipe import from_data
from compress.recipes.run import run

pytestmark = pytest.mark.engine

Make = Callable[[list[Any], Mapping[str, Any]], Path]
ROWS = [[196, 171, 119, 86, 198], [5, 6, 7, 8, 9, 10, 11]]
PACKAGES = {"llama_cpp": "xllamacpp", "compressed-tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes"}
RTN = {"rtn": {"bits": 4, "group_size": 32}}
# Engine, passes, container, nats that log-probabilities may differ: weights decoded to float16, 16-bit activations,
# 8-bit ones in llama.cpp. The first of an engine is asked in a process of its own, as a user's is.
CASES = [
    ("transformers", [RTN], {"dialect": "gguf", "type": "f32"}, 1e-3),
    ("llama_cpp", [RTN], {"dialect": "gguf", "type": "f16"}, 0.3),
    ("transformers", [RTN], {"dialect": "compressed-tensors"}, 0.05),
    ("compressed_tensors", [RTN], {"dialect": "compressed-tensors"}, 5e-3),
    ("transformers", [{"nf4": {}}], {"dialect": "bitsandbytes"}, 0.05),
    ("bitsandbytes", [{"nf4": {}}], {"dialect": "bitsandbytes"}, 5e-3),
]
KNOWN = [case for case in CASES if case[2]["dialect"] in dialects()]


@pytest.fixture
def make(tiny_llama: Path, tmp_path: Path) -> Make:
    """make(passes, export): an artifact of the tiny model."""

    def build(passes: list[Any], export: Mapping[str, Any]) -> Path:
        steps = [*passes, {"export": {**export, "path": "artifact"}}]
        run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out")
        return tmp_path / "out" / "artifact"

    return build


@torch.no_grad()
def ours(path: Path) -> Tensor:
    model = load_model(open_checkpoint(path), torch.device("cpu"))
    return torch.stack([model(torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in ROWS])


@pytest.mark.parametrize(("engine", "passes", "export", "nats"), KNOWN, ids=lambda value: str(value)[:40])
def test_the_engine_computes_our_model(
    engine: str, passes: list[Any], export: Mapping[str, Any], nats: float, make: Make
) -> None:
    for package in {PACKAGES[name] for name in (engine, export["dialect"]) if name in PACKAGES}:
        pytest.importorskip(package)
    artifact = make(passes, export)
    if export == next(case[2] for case in KNOWN if case[0] == engine):
        answer = ask(engine, Path(sys.executable), artifact, ROWS, timeout=200)
        found, told = answer.log_probs, answer.versions
    else:
        script = import_module(f"{scripts.__name__}.{engine}")
        found, told = torch.tensor(script.answer(str(artifact), ROWS)), versions(script.PACKAGES)
    wanted = ours(artifact)
    torch.testing.assert_close(found, wanted, rtol=0, atol=nats)
    assert wanted.std() > 0.5
    assert told


def test_an_engine_that_cannot_load_says_why(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(CompressError, match=r"llama_cpp: RuntimeError: .*server"):
        ask("llama_cpp", Path(sys.executable), tmp_path, ROWS, timeout=60)


def test_llama_cpp_serves(make: Make) -> None:
    pytest.importorskip("xllamacpp")
    artifact = make([RTN], {"dialect": "gguf", "type": "f16"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        serving("llama_cpp", Path(sys.executable), artifact, port).command, stderr=subprocess.DEVNULL
    )
    try:
        assert eventually(f"http://127.0.0.1:{port}/health", server) == {"status": "ok"}
        (model,) = reply(f"http://127.0.0.1:{port}/v1/models")["data"]
        assert model["object"] == "model"
    finally:
        server.kill()
        server.wait()


def eventually(url: str, server: subprocess.Popen[bytes]) -> Any:
    """The reply of a server that may not yet listen, or not yet be ready (503); fails once it has ended."""
    while server.poll() is None:
        try:
            return reply(url)
        except (ConnectionError, urllib.error.URLError):
            time.sleep(0.1)
    pytest.fail("the server ended")


def reply(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)
