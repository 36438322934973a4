"""The shapes that a cost is counted from: of linears and of what comes into them, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable

from compress.formats.base import ModelSpec
from compress.passes.model.anatomy import Anatomy

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What architectures call the number of experts."""

Extent = tuple[int, int]
"""How many sequences, and how long each is."""


def reached(model: ModelSpec, module: str) -> float:
    """The part of the tokens that come to a linear: a token goes through a few experts only."""
    config = model.config
    experts = next((config[key] for key in _EXPERTS if config.get(key)), 0)
    if not experts or not is_expert(module):
        return 1.0
    return min(1.0, float(config.get("num_experts_per_tok", experts)) / experts)


def is_expert(module: str) -> bool:
    """Whether that linear belongs to one of many experts."""
    return ".experts." in module


def linears(model: ModelSpec, anatomy: Anatomy) -> list[list[tuple[int, ...]]]:
    """The shapes of each layer's linears."""
    return [
        [model.tensors[f"{name}.weight"].shape for siblings in layer.siblings for name in siblings]
        for layer in anatomy.layers
    ]


def inputs(model: ModelSpec, anatomy: Anatomy) -> list[list[int]]:
    """How wide the inputs are that each layer's siblings share."""
    return [
        [model.tensors[f"{siblings[0]}.weight"].shape[1] for siblings in layer.siblings] for layer in anatomy.layers
    ]


def ends(model: ModelSpec, anatomy: Anatomy) -> tuple[int, int]:
    """(vocabulary, width of a hidden state)."""
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    return vocabulary, hidden


def elements(shapes: Iterable[tuple[int, ...]]) -> int:
    """How many weights matrices of these shapes have."""
    return sum(rows * columns for rows, columns in shapes)
