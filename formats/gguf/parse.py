"""Reads GGUF headers strictly: whatever the bytes, the outcome is a Header or an InputError.

Every count and length is checked against the bytes that are left before anything is allocated. Stricter
than the specification where files in the wild leave room for it: arrays are flat, strings are UTF-8 (a
tokenizer with other bytes could not be written as Hugging Face's JSON either), tensors lie one behind the
other in the order of their entries, without holes or overlaps (llama.cpp demands that as well).
"""

from __future__ import annotations

import struct
from math import prod

import numpy as np

from compress.formats.errors import InputError
from compress.formats.files.storage import RegularFile
from compress.formats.gguf.blocks.types import BY_ID
from compress.formats.gguf.header import (
    MAGIC,
    MAX_DIMS,
    MAX_KEY,
    MAX_NAME,
    NUMBER_CODES,
    Header,
    Scalar,
    TensorInfo,
    Value,
    ValueType,
    alignment_of,
    key_problem,
    name_problem,
    padded,
)

MAX_HEADER = 256 << 20  # bytes; 262,144 tokens with merges take 15 MB
MAX_ELEMENTS = 1 << 22  # in all arrays together; bounds the Python objects made from them
MAX_STRING = 64 << 20  # bytes of a single value
MAX_TOKEN = 65_535  # bytes of a string in an array
MAX_ENTRIES = 65_536  # metadata keys, tensors
_WINDOW = 1 << 20
_START = 4 + 4 + 8 + 8
_SMALLEST_PAIR = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


def read_header(file: RegularFile) -> Header:
    """The header of an open file.

    Raises InputError for anything that is not a well-formed GGUF file of version 2 or 3 whose tensors all
    lie inside the file, and for I/O errors.
    """
    cursor = _Cursor(file)
    version, tensor_count, pair_count = _start(cursor)
    metadata: dict[str, Value] = {}
    for _ in range(pair_count):
        key = _key(cursor)
        if key in metadata:
            raise cursor.error(f"the metadata key {key[:80]!r} appears twice")
        metadata[key] = _value(cursor, key)
    alignment = _alignment(cursor, metadata)
    tensors: dict[str, TensorInfo] = {}
    offset = 0
    for _ in range(tensor_count):
        info = _tensor(cursor, offset)
        if info.name in tensors:
            raise cursor.error(f"the tensor {info.name!r} appears twice")
        tensors[info.name] = info
        offset = padded(offset + info.nbytes, alignment)
    header = Header(version, metadata, tensors, alignment, padded(cursor.at, alignment))
    _check_ends(header, file)
    return header


class _Cursor:
    """Walks through the header, reading the file in large windows."""

    def __init__(self, file: RegularFile) -> None:
        self.at = 0
        self.elements = 0
        self._file = file
        self._window, self._base = b"", 0

    def error(self, what: str, hint: str = "the file is damaged or not what it claims to be") -> InputError:
        return InputError(f"{self._file.path}: {what}", hint)

    @property
    def left(self) -> int:
        return min(self._file.size, MAX_HEADER) - self.at

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self.at - self._base
        if start + count > len(self._window):
            self._refill(count)
            start = 0
        self.at += count
        return self._window[start : start + count]

    def _refill(self, count: int) -> None:
        if count > self.left:
            limit = f"of {MAX_HEADER >> 20} MiB" if self._file.size > MAX_HEADER else "of the file"
            raise self.error(f"the header goes on past the end {limit}")
        window = bytearray(min(max(count, _WINDOW), self.left))
        self._file.read_at(self.at, window)
        self._window, self._base = bytes(window), self.at  # bytes: slices of them are cheaper

    def number(self, code: str) -> int:
        """An unsigned integer of a struct code."""
        (number,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return int(number)

    def string(self, limit: int) -> str:
        """A length and that many bytes of UTF-8, at most `limit`."""
        length = int.from_bytes(self.take(8), "little")
        if length > limit:
            raise self.error(f"a string is {length:,} bytes long; at most {limit:,} are read")
        return self._text(self.take(length))

    def strings(self, count: int, limit: int) -> list[Scalar]:
        """`string`, `count` times; those inside the window, nearly all, take a third of the time."""
        texts: list[Scalar] = []
        window, at = self._window, self.at - self._base
        for _ in range(count):
            start = at + 8
            end = start + int.from_bytes(window[at:start], "little")
            if end > len(window) or end - start > limit:
                self.at = self._base + at
                texts.append(self.string(limit))
                window, at = self._window, self.at - self._base
            else:
                texts.append(self._text(window[start:end]))
                at = end
        self.at = self._base + at
        return texts

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.error("a string is not UTF-8") from error

    def numbers(self, kind: ValueType, count: int) -> list[Scalar]:
        """`count` numbers or bools."""
        numbers = np.frombuffer(self.take(count * _width(kind)), f"<{NUMBER_CODES[kind]}")
        if kind is ValueType.BOOL:
            if numbers.max(initial=0) > 1:
                raise self.error("a metadata bool is neither 0 nor 1")
            numbers = numbers.astype(bool)
        scalars: list[Scalar] = numbers.tolist()
        return scalars


def _start(cursor: _Cursor) -> tuple[int, int, int]:
    """Magic, version and the two counts: version, tensors, metadata keys."""
    if cursor.left < _START or cursor.take(4) != MAGIC:
        raise cursor.error("not a GGUF file", "give a file that starts with the letters GGUF")
    version = cursor.number("I")
    if version in (2 << 24, 3 << 24):
        raise cursor.error("a big-endian GGUF file", "convert it to little-endian")
    if version not in (2, 3):
        raise cursor.error(f"GGUF version {version} is not known; 2 and 3 are", "convert the model again")
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    for what, count, smallest in (
        ("tensors", tensors, _SMALLEST_TENSOR),
        ("metadata keys", pairs, _SMALLEST_PAIR),
    ):
        if count > min(MAX_ENTRIES, cursor.left // smallest):
            raise cursor.error(f"the header claims {count:,} {what}, more than the file can hold")
    return version, tensors, pairs


def _alignment(cursor: _Cursor, metadata: dict[str, Value]) -> int:
    try:
        return alignment_of(metadata)
    except InputError as error:
        raise cursor.error(str(error)) from error


def _key(cursor: _Cursor) -> str:
    key = cursor.string(MAX_KEY)
    if problem := key_problem(key):
        raise cursor.error(f"the metadata key {key[:80]!r} {problem}")
    return key


def _value(cursor: _Cursor, key: str) -> Value:
    kind = _value_type(cursor, key)
    if kind is ValueType.STRING:
        return Value(kind, cursor.string(MAX_STRING))
    if kind is not ValueType.ARRAY:
        return Value(kind, cursor.numbers(kind, 1)[0])
    element = _value_type(cursor, key)
    if element is ValueType.ARRAY:
        raise cursor.error(f"metadata {key[:80]!r} is an array of arrays")
    count = cursor.number("Q")
    cursor.elements += count
    if count * _width(element) > cursor.left or cursor.elements > MAX_ELEMENTS:
        raise cursor.error(f"metadata {key[:80]!r} claims {count:,} elements, more than can be held")
    if element is ValueType.STRING:
        return Value(kind, cursor.strings(count, MAX_TOKEN), element)
    return Value(kind, cursor.numbers(element, count), element)


def _value_type(cursor: _Cursor, key: str) -> ValueType:
    number = cursor.number("I")
    try:
        return ValueType(number)
    except ValueError as error:
        raise cursor.error(f"metadata {key[:80]!r} has the unknown type {number}") from error


def _width(kind: ValueType) -> int:
    """Bytes of a number; of a string, those that it takes at least."""
    return 8 if kind is ValueType.STRING else struct.calcsize(f"<{NUMBER_CODES[kind]}")


def _tensor(cursor: _Cursor, expected: int) -> TensorInfo:
    """One tensor's entry, whose data must start `expected` bytes into the data."""
    name = cursor.string(MAX_NAME)
    problem = name_problem(name)
    if problem is not None:
        raise cursor.error(f"the tensor name {name!r} {problem}")
    rank = cursor.number("I")
    if not 1 <= rank <= MAX_DIMS:
        raise cursor.error(f"tensor {name!r} has {rank:,} dimensions; 1 to {MAX_DIMS} are possible")
    dims = tuple(cursor.number("Q") for _ in range(rank))
    if 0 in dims or prod(dims) >= 1 << 63:
        raise cursor.error(f"tensor {name!r} has the impossible dimensions {list(dims)}")
    type_id, offset = cursor.number("I"), cursor.number("Q")
    if type_id not in BY_ID:
        raise cursor.error(f"tensor {name!r} has the type {type_id}, which cannot be decoded")
    info = TensorInfo(name, dims, BY_ID[type_id], offset)
    reason = info.type.misfit(info.shape)
    if reason is not None:
        raise cursor.error(f"tensor {name!r}: {reason}")
    if offset != expected:
        raise cursor.error(f"tensor {name!r} starts at {offset:,} instead of {expected:,}: a hole or an overlap")
    return info


def _check_ends(header: Header, file: RegularFile) -> None:
    for info in header.tensors.values():
        end = header.data_offset + info.offset + info.nbytes
        if end > file.size:
            raise InputError(
                f"{file.path}: tensor {info.name!r} ends at byte {end:,}, the file at {file.size:,}",
                "the file is truncated: copy or download it again",
            )
