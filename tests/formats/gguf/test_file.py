"""What is written as GGUF: gguf-py reads it and we read gguf-py's; what fails or is refused leaves no file."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from compress.formats.errors import InputError, RefusedError, StorageError
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.file import GGUFFile, NewTensor, file_size, gguf_file, model_name, write_gguf
from compress.formats.gguf.header import Value, ValueType, encode_header, lay_out
from compress.kernels.qtensor import QTensor

METADATA = {
    "general.architecture": Value(ValueType.STRING, "llama"),
    "a.u8": Value(ValueType.UINT8, 255),
    "a.i8": Value(ValueType.INT8, -128),
    "a.u16": Value(ValueType.UINT16, 65_535),
    "a.i16": Value(ValueType.INT16, -1),
    "a.u32": Value(ValueType.UINT32, (1 << 32) - 1),
    "a.i32": Value(ValueType.INT32, -(1 << 31)),
    "a.f32": Value(ValueType.FLOAT32, 0.5),
    "a.bool": Value(ValueType.BOOL, True),
    "a.u64": Value(ValueType.UINT64, (1 << 64) - 1),
    "a.i64": Value(ValueType.INT64, -1),
    "a.f64": Value(ValueType.FLOAT64, 0.1),
    "a.text": Value(ValueType.STRING, "Grüße\n\0"),
    "a.tokens": Value(ValueType.ARRAY, ["a", "", "Ġb"], ValueType.STRING),
    "a.scores": Value(ValueType.ARRAY, [0.5, -1.0], ValueType.FLOAT32),
    "a.kinds": Value(ValueType.ARRAY, [1, 2, 3], ValueType.INT32),
    "a.flags": Value(ValueType.ARRAY, [True, False], ValueType.BOOL),
}
SHAPES: list[NewTensor] = [
    ("token_embd.weight", (10, 64), BLOCKS["q8_0"]),
    ("blk.0.attn_norm.weight", (3,), BLOCKS["f32"]),
    ("blk.0.ffn_up.weight", (5, 64), BLOCKS["q4_1"]),
    ("blk.0.ffn_down.weight", (2, 3, 32), BLOCKS["q5_0"]),
    ("output.weight", (7, 3), BLOCKS["bf16"]),
]


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape, _ in SHAPES}


def fill(name: str) -> memoryview:
    kinds = {name: kind for name, _, kind in SHAPES}
    return kinds[name].encode(weights()[name])


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.gguf"
    heard: list[str] = []
    write_gguf(path, METADATA, SHAPES, fill, heard.append)
    assert path.stat().st_size == file_size(METADATA, SHAPES)
    assert heard == [name for name, _, _ in SHAPES]
    reader = gguf.GGUFReader(path)
    for key, value in METADATA.items():
        field = reader.fields[key]
        assert field.contents() == value.value
        kinds = [value.type] if value.element is None else [value.type, value.element]
        assert [kind.value for kind in field.types] == kinds
    ours = GGUFFile(path)
    assert ours.header.metadata == METADATA
    assert [read.name for read in reader.tensors] == list(ours.header.tensors)
    for read in reader.tensors:
        values = ours.read(read.name)
        values = values.dequantize() if isinstance(values, QTensor) else values.float()
        assert np.array_equal(values.numpy(), gguf.quants.dequantize(read.data, read.tensor_type))
        assert bytes(ours.read_raw(read.name)) == read.data.tobytes()


def test_we_read_what_gguf_py_writes(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    for key, value in METADATA.items():
        if key != "general.architecture":
            element = None if value.element is None else gguf.GGUFValueType(value.element)
            writer.add_key_value(key, value.value, gguf.GGUFValueType(value.type), element)
    for name, _, kind in SHAPES:
        theirs = gguf.GGMLQuantizationType(kind.id)
        writer.add_tensor(name, gguf.quants.quantize(weights()[name].numpy(), theirs), raw_dtype=theirs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = GGUFFile(path)
    alignment = ours.header.metadata["general.alignment"]
    assert dict(ours.header.metadata) == {**METADATA, "general.alignment": alignment}
    assert ours.header.alignment == alignment.value == 64
    for name, shape, kind in SHAPES:
        info = ours.header.tensors[name]
        assert (info.shape, info.type) == (shape, kind)
        assert bytes(ours.read_raw(name)) == bytes(fill(name))


@pytest.mark.parametrize("name", ["open", "posix_fallocate", "pwrite", "fsync", "replace"])
def test_every_failing_call_is_a_storage_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_kernel: Any
) -> None:
    path = tmp_path / "x.gguf"
    for fail_at in range(50):
        try:
            with monkeypatch.context() as patch:
                kernel = failing_kernel(patch, fail_at, names=[name])
                write_gguf(path, METADATA, SHAPES, fill)
        except StorageError as error:
            assert str(path) in str(error)
            assert "free some space" in error.hint
            assert os.listdir(tmp_path) == []
            continue
        assert kernel.calls == fail_at > 0
        break
    assert GGUFFile(path).header.metadata == METADATA
    assert os.listdir(tmp_path) == ["x.gguf"]


def test_a_file_larger_than_allowed_fails_before_any_work(tmp_path: Path) -> None:
    """The kernel itself refuses, at preallocation: `fill` is never called."""
    needed = file_size(METADATA, SHAPES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    called: list[str] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (needed - 1, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"{needed:,} bytes"):
            write_gguf(tmp_path / "x.gguf", METADATA, SHAPES, fill, called.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert called == []
    assert os.listdir(tmp_path) == []


def test_a_failing_or_wrong_source_leaves_no_file(tmp_path: Path) -> None:
    for data in (bytes(3), bytes(17)):
        with pytest.raises(ValueError, match="takes 16 bytes"):
            write_gguf(tmp_path / "x.gguf", {}, [("w", (4,), BLOCKS["f32"])], lambda _, data=data: data)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Value(ValueType.UINT32, 1 << 32), "'k'"),
        (Value(ValueType.INT8, 1000), "'k'"),
        (Value(ValueType.FLOAT32, 1e300), "'k'"),
        (Value(ValueType.STRING, "\ud800"), "'k'"),
        (Value(ValueType.ARRAY, [1, -1], ValueType.UINT8), "'k'"),
    ],
)
def test_values_that_do_not_fit_are_refused(value: Value, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_header({"k": value}, [])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (("n" * 64, (4,), "f32"), "longer than 63 bytes"),
        (("a/b", (4,), "f32"), "path"),
        (("\ud800", (4,), "f32"), "control"),
        (("w", (), "f32"), "shape"),
        (("w", (2, 0), "f32"), "shape"),
        (("w", (1, 1, 1, 1, 4), "f32"), "shape"),
        (("w", (4, 48), "q4_0"), "blocks of 32"),
    ],
)
def test_tensors_that_gguf_cannot_hold(new: tuple[str, tuple[int, ...], str], message: str) -> None:
    name, shape, kind = new
    with pytest.raises(RefusedError, match=message):
        lay_out([(name, shape, BLOCKS[kind])], 32)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"), ("a-Q8_0.gguf", "a"), ("a-b-F16.gguf", "a-b"),
        ("a_bf16.gguf", "a"), ("x.IQ3_XXS.gguf", "x"), ("x-Q4_K_M.gguf", "x"), ("Qwen3-4B.gguf", "Qwen3-4B"),
        ("model.gguf", ""), ("model-Q8_0.gguf", ""), ("ggml-model-f16.gguf", ""),
    ],
)  # fmt: skip
def test_a_model_is_called_as_its_file_without_the_type(file: str, name: str) -> None:
    assert model_name(Path(file).stem) == name


def test_a_directory_is_known_by_its_only_file(tmp_path: Path) -> None:
    assert gguf_file(tmp_path) is None and gguf_file(tmp_path / "x.gguf") == tmp_path / "x.gguf"
    (tmp_path / "any name.gguf").touch()
    assert gguf_file(tmp_path) == tmp_path / "any name.gguf"
    (tmp_path / "model.safetensors").touch()  # whose directory it then is
    assert gguf_file(tmp_path) is None
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "another.gguf").touch()
    assert gguf_file(tmp_path) is None
