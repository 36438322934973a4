"""GGUF files whose bytes are well-formed and whose contents are not: an InputError that says where, always."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.file import GGUFFile, gguf_file, write_gguf
from compress.formats.gguf.header import Value, ValueType
from compress.formats.gguf.metadata import Metadata
from compress.formats.gguf.tokens.keys import read_vocab
from compress.formats.gguf.tokens.to_tokenizer import tokenizer_files


@pytest.fixture
def written(make_model: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """The directory of a tiny model's GGUF file."""

    def build(family: str) -> Path:
        (tmp_path / "out").mkdir()
        source = open_checkpoint(make_model(tmp_path / "source", family))
        GGUF().write(source, tmp_path / "out", lambda name: None)
        return tmp_path / "out"

    return build


def uint(value: int) -> Value:
    return Value(ValueType.UINT32, value)


def damaged(
    directory: Path, tmp_path: Path, metadata: dict[str, Value | None], integers: bool = False, **shapes: Any
) -> Path:
    """The GGUF file of `directory` with other metadata (None: without it) and tensors of other shapes."""
    source = GGUFFile(gguf_file(directory))
    pairs = {key: value for key, value in {**source.header.metadata, **metadata}.items() if value is not None}
    held = {info.name: info.shape for info in source.header.tensors.values()}
    held = {name: shape for name, shape in {**held, **shapes}.items() if shape}
    path = tmp_path / "damaged.gguf"
    kind = BLOCKS["i32" if integers else "f32"]
    blocks = [(name, shape, kind) for name, shape in held.items()]
    write_gguf(path, pairs, blocks, lambda name: memoryview(bytes(kind.nbytes(held[name]))))
    return path


@pytest.mark.parametrize(
    ("metadata", "shapes", "said"),
    [
        ({"general.architecture": Value(ValueType.STRING, "mamba")}, {}, "known: llama, qwen2"),
        ({"general.architecture": None}, {}, "known: llama, qwen2"),
        ({"general.architecture": uint(3)}, {}, "not a string"),
        ({"split.count": Value(ValueType.UINT16, 3)}, {}, "is one of"),
        ({"llama.block_count": None}, {}, "lack llama.block_count"),
        ({"llama.block_count": uint(1 << 20)}, {}, "block_count"),
        ({"llama.block_count": uint(3)}, {}, "blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": uint(1)}, {}, "no tensor blk.1."),
        ({"llama.embedding_length": uint(1 << 30)}, {}, "embedding_length"),
        ({"llama.embedding_length": uint(128)}, {}, "has the shape [320, 64], not [320, 128]"),
        ({"llama.attention.head_count_kv": uint(3)}, {}, "do not divide"),
        ({"llama.attention.value_length": uint(8)}, {}, "no heads of sizes"),
        ({"llama.rope.dimension_count": uint(8)}, {}, "rotates whole heads"),
        ({"llama.rope.freq_base": Value(ValueType.FLOAT32, float("nan"))}, {}, "freq_base"),
        ({"llama.rope.scaling.type": Value(ValueType.STRING, "longrope"),
          "llama.rope.scaling.factor": Value(ValueType.FLOAT32, 2.0)}, {}, "known: none, linear, yarn"),
        ({"llama.attention.layer_norm_rms_epsilon": uint(1)}, {}, "layer_norm_rms_epsilon"),
        ({}, {"output_norm.weight": None}, "output_norm.weight is missing"),
        ({}, {"blk.0.ffn_gate_exps.weight": (64, 64)}, "no tensor blk.0.ffn_gate_exps.weight"),
        ({}, {"blk.0.attn_q.bias": (64,)}, "blk.0.attn_k.bias is missing"),
        ({}, {"rope_freqs.weight": (9,)}, "rope_freqs.weight"),
        ({}, {"rope_freqs.weight": (8,)}, "rope_freqs.weight"),
        ({"tokenizer.ggml.tokens": Value(ValueType.ARRAY, ["a"], ValueType.STRING)}, {}, "for 1 tokens"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_input_error_that_says_where(
    metadata: dict[str, Value | None],
    shapes: dict[str, Any],
    said: str,
    written: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    directory = written("llama")
    with pytest.raises(InputError) as error:
        GGUF.open(damaged(directory, tmp_path, metadata, **shapes))
    assert said in f"{error.value} {error.value.hint}"


def test_weights_are_not_integers(written: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not integers"):
        GGUF.open(damaged(written("llama"), tmp_path, {}, integers=True))


NASTY = [
    Value(ValueType.UINT64, (1 << 64) - 1),
    Value(ValueType.INT32, -1),
    uint(0),
    uint(7),
    Value(ValueType.FLOAT32, float("inf")),
    Value(ValueType.FLOAT64, 1e300),
    Value(ValueType.STRING, "\\0{{x}}\u2028"),
    Value(ValueType.BOOL, True),
    Value(ValueType.ARRAY, [0, 1], ValueType.INT32),
    Value(ValueType.ARRAY, [], ValueType.STRING),
    Value(ValueType.ARRAY, ["<s>"] * 320, ValueType.STRING),
    None,
]


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_no_value_of_any_key_raises_anything_but_an_input_error(
    name: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = written(name)
    metadata = GGUFFile(gguf_file(directory)).header.metadata
    rope = f"{metadata['general.architecture'].value}.rope.scaling."
    optional = [rope + "type", rope + "factor"]
    refused = 0
    keys = [key for key in metadata if name == "llama" or key.startswith("gptneox.")]
    for key in (*keys, *optional):
        for value in NASTY:
            try:
                GGUF.open(damaged(directory, tmp_path, {key: value})).files()
            except InputError:
                refused += 1
    assert refused > 5 * len(keys)


def test_what_is_not_gguf_is_not_recognized(tmp_path: Path, written: Callable[[str], Path]) -> None:
    assert not GGUF.recognizes(tmp_path)
    assert not GGUF.recognizes(tmp_path / "none.gguf")
    (tmp_path / "short.gguf").write_bytes(b"GG")
    assert not GGUF.recognizes(tmp_path / "short.gguf")
    directory = written("llama")
    assert not GGUF.recognizes(tmp_path / "source")
    assert GGUF.recognizes(directory) and GGUF.recognizes(gguf_file(directory))


def array(element: ValueType, *items: Any) -> Value:
    return Value(ValueType.ARRAY, list(items), element)


TINY = {
    "tokenizer.ggml.model": Value(ValueType.STRING, "gpt2"),
    "tokenizer.ggml.pre": Value(ValueType.STRING, "gpt-2"),
    "tokenizer.ggml.tokens": array(ValueType.STRING, "a", "b", "ab", "<s>"),
    "tokenizer.ggml.token_type": array(ValueType.INT32, 1, 1, 1, 3),
    "tokenizer.ggml.merges": array(ValueType.STRING, "a b"),
    "tokenizer.ggml.bos_token_id": Value(ValueType.UINT32, 3),
}
ONES = array(ValueType.INT32, 1, 1, 1, 1)
SPM = {
    **TINY,
    "tokenizer.ggml.model": Value(ValueType.STRING, "llama"),
    "tokenizer.ggml.scores": array(ValueType.FLOAT32, 0.0, 0.0, -1.0, 0.0),
}


def test_the_smallest_tokenizer_is_read() -> None:
    assert read_vocab(Metadata(TINY)).merges == (("a", "b"),)
    assert read_vocab(Metadata(SPM)).scores[2] == -1.0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model", Value(ValueType.STRING, "t5"), "known: gpt2, llama, bert"),
        ("model", Value(ValueType.UINT32, 7), "not a string"),
        ("pre", Value(ValueType.STRING, "no-such"), "unknown pre-tokenizer"),
        ("tokens", array(ValueType.INT32, 1, 2, 3, 4), "not an array of strings"),
        ("tokens", array(ValueType.STRING), "0 entries"),
        ("tokens", array(ValueType.STRING, "a", "b", "ab", "a"), "twice"),
        ("tokens", array(ValueType.STRING, "a", "b", "ab", "x" * 70_000), "65536 bytes"),
        ("token_type", array(ValueType.INT32, 1, 1, 1), "3 entries for 4 tokens"),
        ("token_type", array(ValueType.INT32, 1, 1, 1, 9), "types are 1 to 6"),
        ("token_type", array(ValueType.INT32, 1, 1, 1, -1), "types are 1 to 6"),
        ("token_type", array(ValueType.INT32, 1, 1, 6, 3), "<0xHH>"),
        ("token_type", array(ValueType.FLOAT32, 1.0, 1.0, 1.0, 1.0), "whole numbers"),
        ("merges", array(ValueType.STRING, "ab"), "two tokens"),
        ("merges", array(ValueType.STRING, "a b a"), "two tokens"),
        ("merges", array(ValueType.STRING, " b"), "two tokens"),
        ("merges", array(ValueType.STRING, "a c"), "not all three are tokens"),
        ("merges", array(ValueType.STRING, "b a"), "not all three are tokens"),
        ("bos_token_id", Value(ValueType.UINT32, 4), "there are 4 tokens"),
        ("bos_token_id", Value(ValueType.INT32, -1), "not a number"),
        ("eos_token_id", Value(ValueType.STRING, "3"), "not a whole number"),
        ("add_eos_token", Value(ValueType.BOOL, True), "eos_token_id is not there"),
        ("add_bos_token", Value(ValueType.UINT8, 1), "not a bool"),
    ],
)
def test_a_hostile_tokenizer_is_an_input_error_that_names_the_key(key: str, value: Value, said: str) -> None:
    with pytest.raises(InputError) as error:
        read_vocab(Metadata({**TINY, f"tokenizer.ggml.{key}": value}))
    assert said in f"{error.value} {error.value.hint}"
    assert key in str(error.value)


def test_a_piece_of_absurd_length_is_an_input_error() -> None:
    tokens = array(ValueType.STRING, "a", "b", "ab", "x" * 60_000)
    vocab = read_vocab(Metadata({**SPM, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": ONES}))
    with pytest.raises(InputError, match="60000 characters"):
        tokenizer_files(vocab, context=8)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (None, "merges by score"),
        (array(ValueType.FLOAT32, 0.0), "1 entries"),
        (array(ValueType.FLOAT32, 0.0, 0.0, float("nan"), 0.0), "NaN"),
    ],
)
def test_a_sentencepiece_tokenizer_needs_its_scores(scores: Value | None, said: str) -> None:
    metadata = {key: value for key, value in SPM.items() if "scores" not in key}
    with pytest.raises(InputError, match=said):
        read_vocab(Metadata(metadata if scores is None else {**metadata, "tokenizer.ggml.scores": scores}))
