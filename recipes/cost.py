"""What a walk over the layers takes, counted from shapes: floating-point operations and peak memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compress.formats.base import ModelSpec
from compress.passes.forward.walk import BATCH_TOKENS
from compress.passes.model.skeleton import Skeleton

_RUNTIME = 450 << 20
"""Python, torch and transformers themselves."""
_HEAP = 1.8
"""What the heap occupies for a byte that is in use: measured on SmolLM2 (975 MiB counted, 1.4 GiB seen)."""


@dataclass(frozen=True)
class Cost:
    """Operations, bytes, and forwards of the sequences through each layer."""

    flops: float
    memory: int
    forwards: int


def sweep_cost(
    skeleton: Skeleton,
    model: ModelSpec,
    sequences: tuple[int, int],
    streams: int,
    *,
    statistics: bool,
    max_ram: int,
) -> Cost:
    """One walk of `sequences` (count, length) through every layer, with a Hessian for all siblings if `statistics`."""
    tokens = sequences[0] * sequences[1]
    shapes = {name.removesuffix(".weight"): spec.shape for name, spec in model.tensors.items()}
    layers = [[shapes[name] for siblings in layer.siblings for name in siblings] for layer in skeleton.anatomy.layers]
    inputs = [[shapes[siblings[0]][1] for siblings in layer.siblings] for layer in skeleton.anatomy.layers]
    widest = max((width for layer in inputs for width in layer), default=skeleton.width)
    held = tokens * 4 * streams * (2 * skeleton.width + widest)
    hold = held <= max_ram // 2
    forwards = (1 if hold or not statistics else 2) if tokens else 0
    forward = 2 * tokens * _elements(shape for layer in layers for shape in layer)
    hessian = sum(2 * tokens * width**2 for layer in inputs for width in layer)
    solve = sum(2 * rows_ * width**2 for layer in layers for rows_, width in layer)
    largest = max((_elements(layer) for layer in layers), default=0) * 4
    ends = skeleton.vocabulary * skeleton.width * 4
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
