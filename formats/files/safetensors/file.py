"""One safetensors file: a strict lazy reader on `pread`, and a preallocating writer with reproducible bytes.

The `safetensors` library writes its metadata in an order that changes from run to run, and memory-maps what
it reads; it serves as the oracle of our tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.files.finite import check_finite
from compress.formats.files.safetensors.header import LENGTH_BYTES, MAX_HEADER, encode_header, parse_header
from compress.formats.files.storage import RegularFile, atomic_write

Fill = Callable[[str], Tensor]


class SafetensorsFile:
    """A safetensors file whose header was read and checked. It is open only while a tensor is read.

    Raises InputError for every file that is not exactly what the format asks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with RegularFile(path) as file:
            self.nbytes = file.size
            self._identity = file.identity
            length = _header_length(file)
            text = bytearray(length)
            file.read_at(LENGTH_BYTES, text)
        self._data = LENGTH_BYTES + length
        header = parse_header(bytes(text), self.nbytes - self._data, path)
        self._entries = header.entries
        self.metadata = header.metadata
        self.specs = {name: entry.spec for name, entry in header.entries.items()}

    def read(self, name: str) -> Tensor:
        """One tensor. Raises InputError if the file changed since it was opened, or holds NaN or Inf."""
        entry = self._entries[name]
        buffer = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
        with RegularFile(self.path) as file:
            if file.identity != self._identity:
                raise InputError(f"{self.path} was changed while it was in use", "run again on a file that keeps still")
            file.read_at(self._data + entry.begin, buffer.numpy().data)
        if entry.spec.dtype == "bool" and bool((buffer > 1).any()):
            raise InputError(f"{self.path}: tensor {name!r} holds booleans that are neither 0 nor 1")
        tensor = buffer.view(getattr(torch, entry.spec.dtype)).view(entry.spec.shape)
        # torch compares no 8-bit floats; every one of them is a float16.
        check_finite(name, tensor.half() if entry.spec.dtype.startswith("float8") else tensor)
        return tensor


def _header_length(file: RegularFile) -> int:
    prefix = bytearray(LENGTH_BYTES)
    file.read_at(0, prefix)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise InputError(
            f"{file.path} is not a safetensors file: its first 8 bytes announce a header of {length:,} bytes"
        )
    if LENGTH_BYTES + length > file.size:
        raise InputError(f"{file.path} ends within its header: it is truncated")
    return length


def file_bytes(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> int:
    """The exact size of the file that `write_file` writes."""
    prefix, header = encode_header(specs, metadata)
    return len(prefix) + header.size


def write_file(path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], fill: Fill) -> None:
    """Write dense tensors one at a time: `fill` is asked for each, in the order of `specs`.

    Raises StorageError when the disk fails; ValueError if `fill` gives a shape or dtype that was not planned.
    """
    prefix, header = encode_header(specs, metadata)
    with atomic_write(path, len(prefix) + header.size) as file:
        file.write(prefix)
        for name, spec in specs.items():
            tensor = fill(name)
            if tuple(tensor.shape) != spec.shape or tensor.dtype != getattr(torch, spec.dtype):
                given = f"{list(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"tensor {name} was planned as {list(spec.shape)} {spec.dtype}, not {given}")
            file.write_at(tensor_bytes(tensor), len(prefix) + header.entries[name].begin)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A view of a tensor's elements in C order as bytes; it copies only what is not in that order yet."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
