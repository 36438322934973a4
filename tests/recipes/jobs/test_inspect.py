"""`inspect` against the safetensors library."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from compress.recipes.jobs.inspect import inspect


def test_what_is_in_a_directory(tiny_llama: Path) -> None:
    found = inspect(tiny_llama)
    stored = load_file(tiny_llama / "model.safetensors")
    assert {line.name: line.shape for line in found.tensors} == {k: tuple(v.shape) for k, v in stored.items()}
    assert {(line.format, line.bits) for line in found.tensors} == {("float32", 32.0)}
    assert found.parameters == sum(tensor.numel() for tensor in stored.values())
    assert found.bytes == (tiny_llama / "model.safetensors").stat().st_size
    assert found.bits_per_weight == pytest.approx(found.bytes * 8 / found.parameters)
    assert (found.dialect, found.architecture) == ("dense", "LlamaForCausalLM")
    (only,) = found.formats
    assert (only.tensors, only.parameters, only.bits) == (len(stored), found.parameters, 32.0)
    assert {"config.json", "tokenizer.json"} <= set(found.files)
