"""A GGUF file as it will be: how it is called, what it says of itself, its tensors, and how their bytes come about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.base import BlockType
from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.scales import scale_name, whole_scale
from compress.formats.gguf.blocks.substitutes import Substitute
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.file import SUFFIX, NewTensor
from compress.formats.gguf.header import Value
from compress.formats.gguf.metadata import string, uint
from compress.formats.gguf.mixes import FILE_TYPES, Traits, is_mix, label_of
from compress.formats.gguf.names import Architecture, Dims, Place
from compress.formats.gguf.placed import matrices
from compress.formats.gguf.rope import Rope
from compress.formats.gguf.shards import part_metadata, part_names, split
from compress.kernels.qtensor import QTensor

# llama.h, enum llama_ftype: what most of the file is.
_FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 11, "q4_k": 14,
    "q5_k": 16, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38,
    "nvfp4": 39,
}  # fmt: skip
_QUANTIZATION_VERSION = 2
_LONGEST_NAME = 200


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
    traits: Traits

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


def general(family: Architecture, config: Mapping[str, Any], kind: str) -> dict[str, Value]:
    """The metadata under `general.`; `kind` is what the file is: a mix, or the type of most weights."""
    # None is made up where there is none: llama.cpp goes by it (what calls itself phi3 must have its special tokens).
    name = _said_name(config)
    return {
        "general.architecture": string(family.name),
        "general.type": string("model"),
        **({"general.name": string(name[:_LONGEST_NAME])} if name else {}),
        "general.file_type": uint(FILE_TYPES[label_of(kind)] if is_mix(kind) else _FILE_TYPES[kind]),
        "general.quantization_version": uint(_QUANTIZATION_VERSION),
    }


def file_name(model: ModelSpec, kind: str) -> str:
    """What llama.cpp's users expect: the model's name, then its mix or the type of most weights:
    `SmolLM2-135M-Q4_0.gguf`.
    """
    name = re.sub(r"[^\w.-]+", "-", model.name or _said_name(model.config) or "model", flags=re.ASCII)
    label = label_of(kind) if is_mix(kind) else kind.upper()
    return f"{name[:_LONGEST_NAME].strip('.-') or 'model'}-{label}{SUFFIX}"


def _said_name(config: Mapping[str, Any]) -> str:
    """The model's name as its configuration says: the last component, for a path would tell where the model lay."""
    return re.split(r"[/\\]", str(config.get("_name_or_path") or "").rstrip("/\\"))[-1]


def kind_of(said: object, entries: Sequence[Entry]) -> str:
    """What a file of these entries is: the mix that was `said`, else the block type of most weights."""
    if isinstance(said, str) and is_mix(said) and not mostly_kept(entries):
        return said
    weights: Counter[str] = Counter()
    for entry in entries:
        weights[entry.block.name] += prod(entry.place.stored)
    return weights.most_common(1)[0][0]


def mostly_kept(entries: Sequence[Entry]) -> bool:
    """Whether most weights were quantized before, otherwise than the file's type would have them."""
    return 2 * sum(prod(entry.place.stored) for entry in entries if entry.kept) > sum(
        prod(entry.place.stored) for entry in entries
    )


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
