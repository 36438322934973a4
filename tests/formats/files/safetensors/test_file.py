"""safetensors files, written and read: the `safetensors` library agrees to the byte."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compress.formats.base import TensorSpec
from compress.formats.files.safetensors.file import SafetensorsFile, file_bytes, write_file

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
    torch.bool,
]  # fmt: skip
SHAPES = [(), (0,), (3, 0, 2), (7,), (5, 3), (1, 1, 1, 1, 1, 1, 1, 2)]


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        f"{dtype}.{len(shape)}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for dtype in DTYPES
        for shape in SHAPES
    }


def test_what_we_write_the_library_reads(tmp_path, octets, specs_of):
    tensors = some_tensors()
    path = tmp_path / "model.safetensors"
    write_file(path, specs_of(tensors), {"b": "2", "a": "é"}, tensors.__getitem__)
    assert path.stat().st_size == file_bytes(specs_of(tensors), {"b": "2", "a": "é"})
    with safe_open(path, "pt") as theirs:
        assert theirs.metadata() == {"a": "é", "b": "2"}
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    assert all(octets(loaded[name]) == octets(tensors[name]) for name in tensors)


def test_what_the_library_writes_we_read(tmp_path, octets, specs_of):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert file.specs == specs_of(tensors)
    assert file.metadata == {"format": "pt"}
    assert all(octets(file.read(name)) == octets(tensors[name]) for name in tensors)


def test_the_bytes_are_these(tmp_path, specs_of):
    tensors = {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor([1.0])}
    write_file(tmp_path / "f", specs_of(tensors), {"format": "pt"}, tensors.__getitem__)
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}'
    )
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f" + b"\1\2"
    assert (tmp_path / "f").read_bytes() == expected


def test_tensors_of_wider_elements_come_first_so_that_all_are_aligned(tmp_path, specs_of):
    tensors = {"odd": torch.zeros(3, dtype=torch.uint8), "half": torch.zeros(3, dtype=torch.float16),
               "word": torch.zeros(3, dtype=torch.int32)}  # fmt: skip
    write_file(tmp_path / "f", specs_of(tensors), {}, tensors.__getitem__)
    raw = (tmp_path / "f").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    offsets = {name: value["data_offsets"][0] for name, value in json.loads(raw[8 : 8 + length]).items()}
    assert offsets == {"word": 0, "half": 12, "odd": 18} and length % 8 == 0


def test_non_contiguous_tensors_are_written_as_they_read(tmp_path):
    matrix = torch.arange(12.0).view(3, 4)
    write_file(tmp_path / "f", {"t": TensorSpec((4, 3), "float32")}, {}, lambda _: matrix.T)
    assert torch.equal(load_file(tmp_path / "f")["t"], matrix.T)


def test_a_tensor_that_was_not_planned_is_not_written(tmp_path):
    for wrong in (torch.zeros(3), torch.zeros(2, 2), torch.zeros(2, dtype=torch.float16)):
        with pytest.raises(ValueError, match="tensor t was planned"):
            write_file(tmp_path / "f", {"t": TensorSpec((2,), "float32")}, {}, lambda _, wrong=wrong: wrong)
        assert list(tmp_path.iterdir()) == []
