"""The header of a GGUF file: metadata and what there is to know of every tensor but its data.

    magic "GGUF" · version u32 · tensor count u64 · metadata count u64
    metadata:  key string · value type u32 · value
    tensors:   name string · n_dims u32 · dims u64 × n_dims · type u32 · offset u64
    padding to the alignment; then the data, offsets counted from here

A string is a u64 length and UTF-8 bytes; an array is a u32 element type, a u64 count and the elements.
Numbers are little-endian. Dims run from the fastest one: the reverse of a torch shape.
Source: `docs/gguf.md` of ggml, versions 2 and 3 (their little-endian layouts are the same).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.base import BlockType

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_NAME = 63  # bytes; ggml keeps names in char[64]
MAX_KEY = 65_535
MAX_DIMS = 4


class ValueType(IntEnum):
    """The types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# The codes that `struct` and numpy share; a bool is a byte 0 or 1.
NUMBER_CODES: Mapping[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}

Scalar = int | float | bool | str


@dataclass(frozen=True)
class Value:
    """One metadata value. Arrays are flat lists; `element` is the type of their elements, else None."""

    type: ValueType
    value: Scalar | list[Scalar]
    element: ValueType | None = None


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's entry: `dims` in ggml order, `offset` in bytes from the start of the data."""

    name: str
    dims: tuple[int, ...]
    type: BlockType
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in torch's row-major order."""
        return self.dims[::-1]

    @property
    def nbytes(self) -> int:
        return self.type.nbytes(self.shape)


@dataclass(frozen=True)
class Header:
    """All that comes before the data, in the file's order; data starts at byte `data_offset`."""

    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    data_offset: int


def padded(count: int, alignment: int) -> int:
    """`count` bytes rounded up to a whole number of alignments."""
    return -(-count // alignment) * alignment


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """The alignment that metadata asks for, or the default. Raises InputError for one that is not sane."""
    value = metadata.get(ALIGNMENT_KEY)
    if value is None:
        return DEFAULT_ALIGNMENT
    alignment = value.value
    if value.type is not ValueType.UINT32 or not isinstance(alignment, int):
        raise InputError(f"{ALIGNMENT_KEY} is of type {value.type.name}, not UINT32")
    if not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise InputError(f"{ALIGNMENT_KEY} is {alignment}, not a power of two from 8 to 2^20")
    return alignment


def name_problem(name: str) -> str | None:
    """What is wrong with a tensor's name, or None."""
    if not name or not name.isprintable() or "/" in name or "\\" in name:
        return "is empty, a path, or holds control characters"
    if len(name.encode()) > MAX_NAME:
        return f"is longer than {MAX_NAME} bytes"
    return None


def key_problem(key: str) -> str | None:
    """What is wrong with a key of metadata, or None."""
    if not key or not key.isprintable():
        return "is empty or holds control characters"
    return f"is longer than {MAX_KEY} bytes" if len(key.encode()) > MAX_KEY else None


def lay_out(tensors: Iterable[tuple[str, tuple[int, ...], BlockType]], alignment: int) -> list[TensorInfo]:
    """Entries for (name, torch shape, type), their data one behind the other.

    Raises RefusedError for what the format cannot hold: a long name, more than four dimensions, rows that
    blocks do not divide.
    """
    infos: list[TensorInfo] = []
    offset = 0
    for name, shape, kind in tensors:
        problem = name_problem(name)
        if problem is not None:
            raise RefusedError(f"the tensor name {name!r} {problem}")
        if not 1 <= len(shape) <= MAX_DIMS or 0 in shape:
            raise RefusedError(f"tensor {name}: GGUF cannot hold the shape {list(shape)}")
        reason = kind.misfit(shape)
        if reason is not None:
            raise RefusedError(f"tensor {name}: {reason}", "choose f16, bf16 or f32 for it")
        infos.append(TensorInfo(name, shape[::-1], kind, offset))
        offset = padded(offset + infos[-1].nbytes, alignment)
    return infos


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """The header in version 3, in the order given, padded to the alignment: its length is `data_offset`.

    Raises InputError naming the key of a value that its type cannot hold.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        try:
            parts += [_string(key), _value(value)]
        except (struct.error, OverflowError, UnicodeEncodeError, TypeError) as error:
            raise InputError(f"GGUF metadata {key!r} cannot hold its value: {error}") from error
    for info in tensors:
        dims = struct.pack(f"<I{len(info.dims)}Q", len(info.dims), *info.dims)
        parts += [_string(info.name), dims, struct.pack("<IQ", info.type.id, info.offset)]
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment_of(metadata)), b"\0")


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    kind = struct.pack("<I", value.type)
    if value.type is not ValueType.ARRAY:
        return kind + _elements(value.type, [value.value])
    assert isinstance(value.value, list) and value.element is not None
    prefix = struct.pack("<IQ", value.element, len(value.value))
    return kind + prefix + _elements(value.element, value.value)


def _elements(kind: ValueType, values: Sequence[object]) -> bytes:
    if kind is ValueType.STRING:
        raw = [text.encode() for text in cast(Sequence[str], values)]
        return b"".join(part for each in raw for part in (len(each).to_bytes(8, "little"), each))
    return struct.pack(f"<{len(values)}{NUMBER_CODES[kind]}", *values)
