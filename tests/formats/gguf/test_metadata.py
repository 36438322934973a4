"""Metadata are those that llama.cpp asks for, by gguf-py's names of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf as library
import pytest

from compress.formats import open_checkpoint
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.file import GGUFFile, gguf_file

MakeModel = Callable[..., Path]
Write = Callable[..., Path]


def test_metadata_is_what_llama_cpp_asks_for(write: Write, make: Callable[[str], Path], tmp_path: Path) -> None:
    directory = write(open_checkpoint(make("llama3")), tmp_path / "out")
    reader = library.GGUFReader(gguf_file(directory))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    keys = library.Keys
    expected = {
        keys.General.ARCHITECTURE: "llama",
        keys.General.FILE_TYPE: int(library.LlamaFileType.MOSTLY_F16),
        keys.General.QUANTIZATION_VERSION: library.GGML_QUANT_VERSION,
        keys.LLM.CONTEXT_LENGTH: 256,
        keys.LLM.EMBEDDING_LENGTH: 64,
        keys.LLM.BLOCK_COUNT: 2,
        keys.LLM.FEED_FORWARD_LENGTH: 128,
        keys.LLM.VOCAB_SIZE: 320,
        keys.Attention.HEAD_COUNT: 4,
        keys.Attention.HEAD_COUNT_KV: 2,
        keys.Attention.KEY_LENGTH: 32,
        keys.Attention.VALUE_LENGTH: 32,
        keys.Rope.DIMENSION_COUNT: 32,
        keys.Rope.FREQ_BASE: 500000.0,
        keys.Tokenizer.MODEL: "gpt2",
        keys.Tokenizer.PRE: "gpt-2",
        keys.Tokenizer.BOS_ID: 0,
        keys.Tokenizer.EOS_ID: 0,
        keys.Tokenizer.ADD_BOS: False,
    }
    assert {key: fields[key.format(arch="llama")] for key in expected} == expected
    assert fields[keys.Attention.LAYERNORM_RMS_EPS.format(arch="llama")] == pytest.approx(1e-5)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {kinds["token_embd.weight"], kinds["blk.0.ffn_up.weight"]} == {"F16"}
    assert {kinds["blk.0.attn_norm.weight"], kinds["blk.0.attn_q.bias"], kinds["rope_freqs.weight"]} == {"F32"}


def test_no_path_of_the_machine_is_written(write: Write, make_model: MakeModel, tmp_path: Path) -> None:
    model = open_checkpoint(make_model(tmp_path / "source", "llama"))
    model.spec = replace(model.spec, config={**model.spec.config, "_name_or_path": "/home/someone/tiny/"})
    directory = write(model, tmp_path / "out")
    assert GGUFFile(gguf_file(directory)).header.metadata["general.name"].value == "tiny"
    assert GGUF.open(directory).spec.config["_name_or_path"] == "tiny"
