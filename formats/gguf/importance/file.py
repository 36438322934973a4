"""Importance matrices as llama.cpp keeps them since July 2025: GGUF files of sums of squares and counts.

    general.type          "imatrix"
    imatrix.datasets      strings: the names of the texts
    imatrix.chunk_count   uint32;  imatrix.chunk_size  uint32: how much text, in tokens
    <tensor>.in_sum2      F32 [matrices, columns]: Σx² of the inputs
    <tensor>.counts       F32 [matrices, 1]: over how many tokens

A dense tensor is one matrix, a stack of experts one a piece. Source: llama.cpp, `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.errors import InputError
from compress.formats.files.storage import RegularFile, read_bytes
from compress.formats.gguf.blocks.base import view_of
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.file import GGUFFile, write_gguf
from compress.formats.gguf.header import MAGIC, Value, ValueType
from compress.formats.gguf.importance.entry import Entry, entry
from compress.formats.gguf.importance.legacy import MAX_BYTES, parse_legacy
from compress.formats.gguf.metadata import string, uint

_KIND = "imatrix"
_SUMS, _COUNTS, _MEANS = ".in_sum2", ".counts", ".in_sum"


def read_imatrix(path: Path) -> dict[str, Entry]:
    """What a file of either form says, by GGUF's name of the tensor (`blk.0.attn_q.weight`).

    Raises InputError for anything that is not a well-formed importance matrix.
    """
    with RegularFile(path) as file:
        magic = bytearray(min(len(MAGIC), file.size))
        file.read_at(0, magic)
    return _parse_gguf(path) if bytes(magic) == MAGIC else parse_legacy(read_bytes(path, MAX_BYTES), str(path))


def write_imatrix(path: Path, entries: Mapping[str, Entry], texts: Sequence[str], chunks: int, length: int) -> None:
    """Write a GGUF file of `entries`, made of so many `chunks` of `length` tokens of the `texts` of these names."""
    metadata = {
        "general.type": string(_KIND),
        "imatrix.datasets": Value(ValueType.ARRAY, list(texts), ValueType.STRING),
        "imatrix.chunk_count": uint(chunks),
        "imatrix.chunk_size": uint(length),
    }
    tensors: dict[str, Tensor] = {}
    for name, found in sorted(entries.items()):
        matrices = found.counts.numel()
        tensors[name + _SUMS] = found.sums.view(matrices, -1)
        tensors[name + _COUNTS] = found.counts.view(matrices, 1)
    plan = [(name, tuple(tensor.shape), BLOCKS["f32"]) for name, tensor in tensors.items()]
    write_gguf(path, metadata, plan, lambda name: view_of(tensors[name].to("cpu", torch.float32).contiguous()))


def _parse_gguf(path: Path) -> dict[str, Entry]:
    file = GGUFFile(path)
    kind = file.header.metadata.get("general.type")
    if kind is None or kind.value != _KIND:
        raise InputError(f"{path}: a GGUF file, and no importance matrix", "give what llama-imatrix wrote")
    found: dict[str, Entry] = {}
    for name in file.header.tensors:
        tensor, _, suffix = name.rpartition(".")
        if f".{suffix}" == _SUMS:
            if tensor + _COUNTS not in file.header.tensors:
                raise InputError(f"{path}: {tensor} has sums and no counts", "the file is damaged: make it again")
            found[tensor] = entry(f"{path}: {tensor}", _numbers(file, name), _numbers(file, tensor + _COUNTS))
        elif f".{suffix}" not in (_COUNTS, _MEANS):
            raise InputError(f"{path}: {name} is nothing that an importance matrix has", "make it with llama-imatrix")
    if not found:
        raise InputError(f"{path}: an importance matrix of no tensor", "make it again, on more text")
    return found


def _numbers(file: GGUFFile, name: str) -> Tensor:
    """One tensor, which must be F32."""
    info = file.header.tensors[name]
    if info.type.name != "f32":
        raise InputError(f"{file.path}: {name} is {info.type.name}, not f32", "make it with llama-imatrix")
    values = file.read(name)
    assert isinstance(values, Tensor)
    return values
