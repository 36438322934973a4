"""Whole models to GGUF and back. Judges: gguf-py's reader, names and constants, and transformers' configs.

That llama.cpp loads and computes them is shown in tests/conformance/test_llama_cpp.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint, ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.gguf import dialect
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.file import GGUFFile, gguf_file
from compress.formats.options import Match
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize

Write = Callable[..., Path]
Quantize = Callable[[Checkpoint, IntFormat], Checkpoint]
INT8 = IntFormat(8, 32)


class Held(Checkpoint):
    """A checkpoint in memory."""

    dialect = "held"

    def __init__(self, model: Checkpoint, tensors: Mapping[str, Tensor | QTensor]) -> None:
        self.path, self._model, self._tensors = model.path, model, tensors
        specs = {name: spec_of(tensor) for name, tensor in tensors.items()}
        self.spec = ModelSpec(model.spec.config, specs, model.files())

    def read(self, name: str) -> Tensor | QTensor:
        return self._tensors[name]

    def files(self) -> Mapping[str, bytes]:
        return self._model.files()

    def nbytes(self) -> int:
        return 0


def spec_of(tensor: Tensor | QTensor) -> TensorSpec:
    if isinstance(tensor, QTensor):
        return TensorSpec(tensor.shape, "float32", tensor.format)
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def same(left: Tensor | QTensor, right: Tensor | QTensor) -> bool:
    if isinstance(left, QTensor) and isinstance(right, QTensor):
        params = all(torch.equal(left.params[name], right.params[name]) for name in left.params)
        return left.format == right.format and torch.equal(left.codes, right.codes) and params
    return isinstance(left, Tensor) and isinstance(right, Tensor) and torch.equal(left, right)


def test_a_model_comes_back_equal(write: Write, kind: str, make: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_checkpoint(make(kind))
    directory = write(source, tmp_path / "out", type="f32")
    again, witness = open_checkpoint(directory), GGUF.witness(directory)
    assert again.dialect == "gguf"
    assert dict(again.spec.tensors) == dict(source.spec.tensors)
    for tensor in source.spec.tensors:
        assert same(again.read(tensor), source.read(tensor)), tensor
        assert same(witness(tensor), source.read(tensor)), tensor


@pytest.mark.parametrize(
    "number_format",
    [
        IntFormat(4, 32),
        IntFormat(4, 32, "real"),
        IntFormat(5, 32),
        IntFormat(5, 32, "real"),
        IntFormat(8, 32),
    ],
    ids=lambda value: value.name,
)
def test_quantized_weights_keep_codes_and_parameters(
    write: Write,
    family: str,
    number_format: IntFormat,
    make: Callable[[str], Path],
    quantized_decoder: Quantize,
    tmp_path: Path,
) -> None:
    model = quantized_decoder(open_checkpoint(make(family)), number_format)
    directory = write(model, tmp_path / "out", type="f32")
    again, witness = GGUF.open(directory), GGUF.witness(directory)
    for tensor in model.spec.tensors:
        stored = model.read(tensor)
        assert same(again.read(tensor), stored), tensor
        values = stored.dequantize() if isinstance(stored, QTensor) else stored
        assert torch.equal(witness(tensor), values), tensor
    # GGUF to GGUF changes nothing, down to the last byte.
    written = write(again, tmp_path / "again", type="f32")
    assert gguf_file(written).read_bytes() == gguf_file(directory).read_bytes()


def test_larger_groups_and_whole_zero_points_keep_their_values(
    write: Write, make: Callable[[str], Path], quantized_decoder: Quantize, tmp_path: Path
) -> None:
    source = open_checkpoint(make("llama"))
    for at, number_format in enumerate((IntFormat(4, 64), IntFormat(3, -1), IntFormat(4, 32, "integer"))):
        model = quantized_decoder(source, number_format)
        witness = GGUF.witness(write(model, tmp_path / str(at)))
        for tensor in (name for name in model.spec.tensors if "layers" in name):
            stored = model.read(tensor)
            assert torch.equal(witness(tensor), stored.dequantize() if isinstance(stored, QTensor) else stored)


def test_dense_types_go_by_module_name(write: Write, make: Callable[[str], Path], tmp_path: Path) -> None:
    rules = ({"match": "model.embed*", "value": "bf16"}, {"match": "*.down_proj", "value": "q8_0"})
    directory = write(open_checkpoint(make("llama")), tmp_path / "out", type=rules)
    tensors = GGUFFile(gguf_file(directory)).header.tensors
    assert tensors["token_embd.weight"].type is BLOCKS["bf16"]
    assert tensors["blk.1.ffn_down.weight"].type is BLOCKS["q8_0"]
    assert tensors["blk.1.ffn_up.weight"].type is BLOCKS["f16"]
    assert isinstance(GGUF(type=rules).type, tuple) and isinstance(GGUF(type=rules).type[0], Match)


def test_a_head_of_its_own_is_written_and_a_copy_is_not(
    write: Write, make: Callable[[str], Path], tmp_path: Path
) -> None:
    source = open_checkpoint(make("llama"))
    tensors = {name: source.read(name) for name in source.spec.tensors}
    embedding = tensors["model.embed_tokens.weight"]
    assert isinstance(embedding, Tensor)
    copied = Held(source, {**tensors, "lm_head.weight": embedding})
    assert "lm_head.weight" not in GGUF.open(write(copied, tmp_path / "copied")).spec.tensors
    headed = Held(source, {**tensors, "lm_head.weight": quantize(embedding, INT8, INT8.fit(embedding))})
    again = GGUF.open(write(headed, tmp_path / "headed"))
    assert same(again.read("lm_head.weight"), headed.read("lm_head.weight"))
    assert again.spec.config["tie_word_embeddings"] is False


def test_weights_that_a_type_cannot_hold_are_refused_by_name(
    write: Write, make: Callable[[str], Path], tmp_path: Path
) -> None:
    source = open_checkpoint(make("llama"))
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = {tensor: source.read(tensor) for tensor in source.spec.tensors}
    large = Held(source, {**tensors, name: torch.full((128, 64), 1e6)})
    (tmp_path / "out").mkdir()
    with pytest.raises(RefusedError, match=name):
        GGUF(type="f16").write(large, tmp_path / "out", lambda told: None)
    assert list((tmp_path / "out").iterdir()) == []


# Not qwen3: transformers takes every head of a Qwen3 in GGUF to be 128 wide. Not gpt_neox: it has no such family.
@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2"])
def test_transformers_reads_the_file_as_we_do(
    write: Write, name: str, make: Callable[[str], Path], quantized_decoder: Quantize, tmp_path: Path
) -> None:
    directory = write(quantized_decoder(open_checkpoint(make(name)), INT8), tmp_path / "out", type="f32")
    ours, theirs = (
        GGUF.open(directory),
        AutoModelForCausalLM.from_pretrained(directory, gguf_file=gguf_file(directory).name),
    )
    for tensor, values in theirs.state_dict().items():
        if tensor in ours.spec.tensors:
            stored = ours.read(tensor)
            assert torch.equal(values, stored.dequantize() if isinstance(stored, QTensor) else stored)


def test_a_tokenizer_is_read_once_for_all_types_that_are_weighed(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, counted = list[str](), dialect.vocab_of
    monkeypatch.setattr(dialect, "vocab_of", lambda *given: read.append("") or counted(*given))
    checkpoint = open_checkpoint(tiny_llama)
    model = replace(checkpoint.spec, files=checkpoint.files())
    sizes = [GGUF(type=kind).layout(model).nbytes for kind in ("f16", "q8_0", "f16")]
    assert len(read) == 1 and sizes[0] == sizes[2] > sizes[1]
    settings = json.loads(model.files["tokenizer_config.json"])
    longer = json.dumps({**settings, "chat_template": "{{ messages }}" * 9}).encode()
    other = replace(model, files={**model.files, "tokenizer_config.json": longer})
    assert GGUF(type="f16").layout(other).nbytes > sizes[0] and len(read) == 2
