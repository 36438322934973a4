"""Where a linear layer sits: in which decoder block, or outside of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from compress.formats.base import ModelSpec, TensorSpec

_IN_BLOCK = re.compile(r"(?P<blocks>.+?)\.(?P<index>\d+)\.(?P<path>.+)")


@dataclass(frozen=True, order=True)
class Place:
    """A module within a decoder block: `model.layers` `3` `mlp.up_proj`. Outside, blocks is empty."""

    blocks: str
    index: int
    path: str

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def name(self) -> str:
        return f"{self.blocks}.{self.index}.{self.path}" if self.blocks else self.path


def place_of(module: str) -> Place:
    """Where the module of that full name sits."""
    match = _IN_BLOCK.fullmatch(module)
    return Place(match["blocks"], int(match["index"]), match["path"]) if match else Place("", 0, module)


def linears_of(tensors: Mapping[str, TensorSpec]) -> dict[Place, TensorSpec]:
    """Every quantized layer, and the dense matrices of the decoder blocks that have any, by place and in its order."""
    matrices = {
        place_of(name.removesuffix(".weight")): spec
        for name, spec in tensors.items()
        if name.endswith(".weight") and len(spec.shape) == 2
    }
    blocks = {place.blocks for place, spec in matrices.items() if spec.format and place.blocks}
    return {place: matrices[place] for place in sorted(matrices) if matrices[place].format or place.blocks in blocks}


def quantizes_head(model: ModelSpec) -> bool:
    """Whether a layer outside the decoder blocks is quantized: an output head, no longer tied."""
    return any(
        spec.format is not None and not place_of(name.removesuffix(".weight")).blocks
        for name, spec in model.tensors.items()
    )
