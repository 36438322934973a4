"""The header of a GGUF file, byte by byte."""

import struct

import pytest

from compress.formats.errors import InputError
from compress.formats.files.storage import RegularFile
from compress.formats.gguf.header import ValueType
from compress.formats.gguf.parse import read_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def parsed(path, pairs=(), tensors=(), data=b"", version=3):
    """The header of a file of these parts, as ggml's document lays them out."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join([*pairs, *tensors])
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    with RegularFile(path) as file:
        return read_header(file)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.gguf"


def test_pairs_and_tensors_are_read(path):
    pairs = [
        pair("a", 8, text("word")), pair("b", 4, struct.pack("<I", 7)),
        pair("c", 9, struct.pack("<IQ", 5, 2) + struct.pack("<2i", -1, 2)),
    ]  # fmt: skip
    header = parsed(path, pairs, [tensor("t", (3, 2), 0, 0)], bytes(32))
    assert {key: value.value for key, value in header.metadata.items()} == {"a": "word", "b": 7, "c": [-1, 2]}
    assert header.metadata["c"].element is ValueType.INT32
    assert header.tensors["t"].shape == (2, 3)  # GGUF counts the fastest dimension first
    assert header.data_offset % 32 == 0


@pytest.mark.parametrize("version", [1, 2**24 * 3, 99])
def test_other_versions_and_byte_orders_are_refused(path, version):
    with pytest.raises(InputError):
        parsed(path, version=version)


def test_a_key_twice_is_refused(path):
    with pytest.raises(InputError, match="a"):
        parsed(path, [pair("a", 0, b"\1"), pair("a", 0, b"\2")])


def test_a_text_longer_than_the_file_is_refused(path):
    with pytest.raises(InputError):
        parsed(path, [text("a") + struct.pack("<IQ", 8, 1 << 40)])
