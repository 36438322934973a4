"""`untie`: AutoGPTQ does not take the embedding for the head, so the head is written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.gptq.dialect import GPTQ
from compress.formats.views.untied import untied_spec
from compress.kernels.numbers.int import IntFormat


@pytest.fixture
def quantized(tiny_llama: Path, in_memory: Any) -> Any:
    model = open_checkpoint(tiny_llama)
    linears = [name for name in model.spec.tensors if "_proj" in name]
    return in_memory(model, dict.fromkeys(linears, IntFormat(4, 32)))


def test_the_head_is_written_out(quantized: Any, tmp_path: Path) -> None:
    dialect = GPTQ(untie=True)
    planned = dialect.layout(quantized.spec)
    dialect.write(quantized, tmp_path, lambda name: None)
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    assert planned.nbytes == (tmp_path / "model.safetensors").stat().st_size
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    again = open_checkpoint(tmp_path)
    assert again.spec.tensors["lm_head.weight"].shape == (320, 64)


def test_without_it_nothing_changes(quantized: Any, tmp_path: Path) -> None:
    GPTQ().write(quantized, tmp_path, lambda name: None)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_head_that_is_there_stays_as_it_is() -> None:
    tensors = {
        "model.embed_tokens.weight": TensorSpec((320, 64), "float32"),
        "lm_head.weight": TensorSpec((320, 64), "float16"),
    }
    spec = untied_spec(ModelSpec({"vocab_size": 320, "tie_word_embeddings": True}, tensors))
    assert dict(spec.tensors) == tensors and spec.config["tie_word_embeddings"] is False


@pytest.mark.parametrize("rows", [None, 64, "320"])
def test_an_embedding_that_cannot_be_told_is_refused(rows: Any) -> None:
    tensors = {"embed.weight": TensorSpec((320, 64), "float32"), "a.weight": TensorSpec((64, 64), "float32")}
    tensors["b.weight"] = tensors["a.weight"]
    with pytest.raises(RefusedError, match="embedding"):
        untied_spec(ModelSpec({"vocab_size": rows}, tensors))
