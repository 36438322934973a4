"""How large a model is at each precision, and its key-value cache: from headers alone.

weights          parameters · bits / 8
inference        weights · 1.2       (activations, buffers and fragmentation: a rule of thumb)
training         weights · 4         (gradients and Adam's two moments in the weights' precision)
"""

from __future__ import annotations

from compress.formats.base import ModelSpec
from compress.recipes.figures.cache import Cache, Figures, cache_of
from compress.recipes.figures.footprint import with_room

PRECISIONS = {"FP32": 32, "FP16/BF16": 16, "INT8": 8, "INT4": 4}


class Precision(Figures):
    """A model's size in bytes at one precision."""

    name: str
    bits: int
    weights: int
    inference: int
    training: int


class Memory(Figures):
    """What `compress plan MODEL` shows."""

    model: str
    architecture: str
    parameters: int
    stored: int
    precisions: tuple[Precision, ...]
    cache: Cache | None
    notes: tuple[str, ...]


def memory_of(name: str, spec: ModelSpec, stored: int) -> Memory:
    """The table for a model with these headers, whose weight files have `stored` bytes.

    Raises InputError for a config.json with impossible values.
    """
    parameters = spec.parameters
    cache, note = cache_of(spec.config)
    return Memory(
        model=name,
        architecture=spec.architecture,
        parameters=parameters,
        stored=stored,
        precisions=tuple(precision(label, parameters, bits) for label, bits in PRECISIONS.items()),
        cache=cache,
        notes=(note,) if note else (),
    )


def precision(name: str, parameters: int, bits: int) -> Precision:
    """The sizes of a model of `parameters` parameters at `bits` bits each."""
    weights = (parameters * bits + 7) // 8
    return Precision(name=name, bits=bits, weights=weights, inference=with_room(weights), training=weights * 4)
