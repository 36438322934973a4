"""A GGUF file as it will be: everything but the weights, and how their bytes come about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.base import BlockType
from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.scales import scale_name, whole_scale
from compress.formats.gguf.blocks.substitutes import Substitute
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.file import SUFFIX, NewTensor
from compress.formats.gguf.header import Value
from compress.formats.gguf.names import Dims, Place
from compress.formats.gguf.placed import matrices
from compress.formats.gguf.rope import Rope
from compress.formats.gguf.shards import part_metadata, part_names, split
from compress.kernels.qtensor import QTensor


@dataclass(frozen=True)
class Entry:
    """One tensor to write: its place, the tensors it comes from (none: computed), its block type.

    `substitute`: what that stands for, if its rows do not fit what was asked for. `kept`: it was quantized
    before, otherwise than `type` would have it.
    """

    place: Place
    sources: tuple[str, ...]
    block: BlockType
    substitute: Substitute | None = None
    kept: bool = False

    @property
    def with_scale(self) -> tuple[Entry, ...]:
        """Itself and, where its blocks leave one out, the tensor beside it that holds its scale or those of experts."""
        if not (isinstance(self.block, FormatType) and self.block.beside):
            return (self,)
        place = Place(scale_name(self.place.gguf), (), (self.place.experts or 1,))
        return self, Entry(place, (), BLOCKS["f32"])


@dataclass(frozen=True)
class Plan:
    """A whole file but for the weights."""

    name: str
    metadata: Mapping[str, Value]
    entries: tuple[Entry, ...]
    dims: Dims
    rope: Rope
    largest: int | None

    @property
    def tensors(self) -> list[NewTensor]:
        return [(entry.place.gguf, entry.place.stored, entry.block) for entry in self.entries]

    @property
    def files(self) -> list[tuple[str, Mapping[str, Value], list[NewTensor]]]:
        """Name, metadata and tensors of each file to write."""
        parts = split(self.tensors, self.largest) if self.largest else [self.tensors]
        stem = self.name.removesuffix(SUFFIX)
        names = [self.name] if len(parts) == 1 else part_names(stem, len(parts))
        return [(name, part_metadata(self.metadata, at, parts), parts[at]) for at, name in enumerate(names)]


class Filling:
    """The bytes of the tensors of `model`, which are asked for in the file's order: scales follow their blocks."""

    def __init__(self, model: Checkpoint, dims: Dims, rope: Rope) -> None:
        self._model, self._dims = model, dims
        self._computed: dict[str, Tensor] = dict(rope.tensors(dims.head))

    def encode(self, entry: Entry) -> Iterator[memoryview]:
        """The bytes of one tensor, expert by expert. What its type cannot hold is an error that names it."""
        if not entry.sources:
            yield memoryview(entry.block.encode(self._computed.pop(entry.place.gguf)))
            return
        scales: list[Tensor] = []
        try:
            for matrix in matrices(entry.place, entry.sources, self._model, self._dims):
                yield self._packed(entry.block, matrix, scales)
        except (InputError, RefusedError) as error:
            raise type(error)(f"tensor {entry.sources[0]}: {error}", error.hint) from error
        if scales:
            self._computed[scale_name(entry.place.gguf)] = torch.cat(scales)

    def _packed(self, block: BlockType, matrix: Tensor | QTensor, scales: list[Tensor]) -> memoryview:
        if isinstance(block, FormatType) and block.beside:
            matrix = block.rounded(matrix) if isinstance(matrix, Tensor) else matrix
            scales.append(whole_scale(matrix.params[block.beside]))
        return block.pack(matrix) if isinstance(matrix, QTensor) else block.encode(matrix)
