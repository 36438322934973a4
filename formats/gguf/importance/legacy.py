"""Importance matrices as llama.cpp kept them before July 2025 (`imatrix.dat`), and as ik_llama.cpp keeps them.

    int32 entries
    each: int32 length, name · int32 calls · int32 values, so many float32: the mean of x² times `calls`
    then, in later ones: int32 chunks · int32 length, name of the text

A stack of experts is one entry; one that no token came to has the mean 1 everywhere. Little-endian. Source:
llama.cpp, `tools/imatrix/imatrix.cpp`, save_imatrix_legacy.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from compress.formats.errors import InputError
from compress.formats.gguf.header import MAX_NAME, name_problem
from compress.formats.gguf.importance.entry import Entry, entry
from compress.formats.gguf.parse import MAX_ENTRIES

MAX_BYTES = 1 << 30
"""Larger than any: a model of 61 layers and 256 experts takes 0.5 GB."""
_SMALLEST = 4 + 1 + 4 + 4 + 4


def parse_legacy(data: bytes, where: str) -> dict[str, Entry]:
    """The entries, by GGUF's name of the tensor. `where` is the file. Raises InputError for anything else."""
    cursor = _Cursor(data, where)
    count = cursor.number()
    if not 0 < count <= min(MAX_ENTRIES, cursor.left // _SMALLEST):
        raise cursor.error(f"it claims {count:,} entries, more or fewer than it can hold")
    found: dict[str, Entry] = {}
    for _ in range(count):
        name = cursor.name()
        if name in found:
            raise cursor.error(f"the tensor {name!r} appears twice")
        calls, values = cursor.number(), cursor.number()
        if calls < 1:
            raise cursor.error(f"{name!r} is of {calls:,} calls")
        found[name] = entry(f"{where}: {name}", cursor.floats(name, values), torch.tensor([float(calls)]))
    return found


def never_reached(sums: Tensor, count: float) -> bool:
    """Whether Σx² [columns] of an expert is what this form has for one that no token came to."""
    return bool((sums == count).all())


class _Cursor:
    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._at = data, where, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def error(self, what: str) -> InputError:
        return InputError(f"{self._where}: no importance matrix: {what}", "give what llama-imatrix wrote")

    def number(self) -> int:
        (number,) = struct.unpack("<i", self._take(4))
        return int(number)

    def name(self) -> str:
        length = self.number()
        if not 0 < length <= MAX_NAME:
            raise self.error(f"a name of {length:,} bytes")
        try:
            name = self._take(length).decode()
        except UnicodeDecodeError:
            raise self.error("a name that is not UTF-8") from None
        if problem := name_problem(name):
            raise self.error(f"the name {name!r} {problem}")
        return name

    def floats(self, name: str, count: int) -> Tensor:
        if not 0 < count <= self.left // 4:
            raise self.error(f"{name!r} claims {count:,} values, and {self.left:,} bytes are left")
        return torch.frombuffer(bytearray(self._take(4 * count)), dtype=torch.float32)

    def _take(self, count: int) -> bytes:
        if count > self.left:
            raise self.error("it ends in the middle")
        self._at += count
        return self._data[self._at - count : self._at]
