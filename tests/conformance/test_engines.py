"""The quick part of the conformance table: engines that install beside us answer for tiny artifacts.

Each runs in a process of its own, through its script in recipes/engines/; the whole table is
tests/conformance/table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.formats import dialects, open_checkpoint
from compress.formats.errors import CompressError
from compress.passes.model.loading import load_model
from compress.recipes.engines.ask import ask, engines
from compress.recipes.recipe import from_data
from compress.recipes.run import run

pytestmark = pytest.mark.engine

Make = Callable[[list[Any], Mapping[str, Any]], Path]
ROWS = [[196, 171, 119, 86, 198], [5, 6, 7, 8, 9, 10, 11]]
PACKAGES = {"llama_cpp": "xllamacpp", "compressed-tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes"}
RTN = {"rtn": {"bits": 4, "group_size": 32}}
# Engine, passes, container, nats that log-probabilities may differ: weights decoded to float16, 16-bit activations,
# 8-bit ones in llama.cpp.
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
    answer = ask(engine, Path(sys.executable), artifact, ROWS, timeout=200)
    wanted = ours(artifact)
    torch.testing.assert_close(answer.log_probs, wanted, rtol=0, atol=nats)
    assert wanted.std() > 0.5
    assert answer.versions


def test_an_engine_that_cannot_load_says_why(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(CompressError, match=r"llama_cpp: RuntimeError: .*server"):
        ask("llama_cpp", Path(sys.executable), tmp_path, ROWS, timeout=60)


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="does not start"):
        ask("vllm", tmp_path / "python", tmp_path, ROWS, timeout=10)


def test_an_engine_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """And what it started with it: the pipe that its child holds open would keep us waiting."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 100 &\nsleep 100\n")
    python.chmod(0o755)
    with pytest.raises(CompressError, match="within 1 s"):
        ask("vllm", python, tmp_path, ROWS, timeout=1)


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
        ask("vllm", python, tmp_path, ROWS, timeout=10)
    assert str(caught.value) == f"vllm: {words}"


def test_every_engine_has_a_script() -> None:
    wanted = ("auto_gptq", "bitsandbytes", "compressed_tensors", "gptqmodel", "llama_cpp", "transformers", "vllm")
    assert engines() == wanted
