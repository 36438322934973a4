"""What a walk over the layers takes, counted from shapes: floating-point operations and peak memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compress.formats.base import ModelSpec
from compress.passes.model.anatomy import Anatomy

BATCH_TOKENS = 4096
"""Tokens per forward: enough to keep matrix products efficient, few enough to keep activations small."""
_RUNTIME = 450 << 20
"""Python, torch and transformers themselves."""
_HEAP = 1.8
"""What the heap occupies for a byte that is in use: measured on SmolLM2 (975 MiB counted, 1.4 GiB seen)."""

Extent = tuple[int, int]
"""How many sequences, and how long each is."""


@dataclass(frozen=True)
class Cost:
    """Operations, bytes, and forwards of the sequences through each layer."""

    flops: float
    memory: int
    forwards: int


def held_bytes(tokens: int, streams: int, width: int, widest: int) -> int:
    """Memory that holds every batch at siblings, at most: residual, normed input, widest linear input; all fp32."""
    return tokens * 4 * streams * (2 * width + widest)


def can_hold(nbytes: int, budget: int) -> bool:
    """Whether activations of `nbytes` fit beside the model. Depends on the budget, never on the moment."""
    return nbytes <= budget // 2


def walk_cost(
    model: ModelSpec, anatomy: Anatomy, sequences: Extent, budget: int, *, streams: int = 1, statistics: bool = False
) -> Cost:
    """One walk of `sequences` through every layer of `streams` models, with a Hessian per input if `statistics`."""
    tokens = sequences[0] * sequences[1]
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    shapes = {name.removesuffix(".weight"): spec.shape for name, spec in model.tensors.items()}
    layers = [[shapes[name] for siblings in layer.siblings for name in siblings] for layer in anatomy.layers]
    inputs = [[shapes[siblings[0]][1] for siblings in layer.siblings] for layer in anatomy.layers]
    widest = max((width for layer in inputs for width in layer), default=hidden)
    held = held_bytes(tokens, streams, hidden, widest)
    hold = can_hold(held, budget)
    forwards = (1 if hold or not statistics else 2) if tokens else 0
    forward = 2 * tokens * _elements(shape for layer in layers for shape in layer)
    hessian = sum(2 * tokens * width**2 for layer in inputs for width in layer)
    solve = sum(2 * rows * width**2 for layer in layers for rows, width in layer)
    largest = max((_elements(layer) for layer in layers), default=0) * 4
    ends = vocabulary * hidden * 4
    batch = min(tokens, BATCH_TOKENS) * 4 * 6 * widest
    # One Hessian and its solve at a time; all of a layer's at once where statistics are gathered apart.
    together = max((sum(width**2 for width in layer) for layer in inputs), default=0)
    matrices = widest**2 + (widest**2 if hold else together)
    working = (held if hold and statistics else batch) + matrices * 4 if tokens else 0
    return Cost(
        flops=forward * forwards * streams + (hessian * streams + solve if statistics else 0),
        memory=_RUNTIME + int(_HEAP * max(ends, largest * (1 + streams) + working + batch)),
        forwards=forwards,
    )


def _elements(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(rows * columns for rows, columns in shapes)
