"""What of a model may learn, by its headers alone."""

from __future__ import annotations

from collections.abc import Sequence

from compress.formats.base import ModelSpec
from compress.formats.errors import UsageError, suggest
from compress.formats.options import matches
from compress.passes.model.anatomy import Anatomy
from compress.passes.train.adapters import targeted
from compress.passes.train.options import TrainOptions


def learning(model: ModelSpec, parameters: Sequence[str], options: TrainOptions, anatomy: Anatomy) -> frozenset[str]:
    """The tensors among `parameters` that learn, or whose adapters do. Raises UsageError if that is none.

    Vectors are norms and biases; they learn with the scales.
    """
    train = options.train
    if train == "lora":
        return targeted(options.lora, anatomy)
    vectors = {name for name in parameters if len(model.tensors[name].shape) == 1}
    quantized = {name for name in parameters if model.tensors[name].format is not None}
    if isinstance(train, tuple):
        return _matched(parameters, train)
    if train == "scales" and not quantized:
        raise UsageError(
            "train: scales: no tensor is quantized, so there are no scales",
            "put a pass that quantizes before it, or say train: all",
        )
    return frozenset({"norms": vectors, "scales": vectors | quantized}.get(train, set(parameters)))


def _matched(parameters: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """Those that a pattern matches, by the name of the tensor or of its module."""
    names = {name: (name, name.removesuffix(".weight").removesuffix(".bias")) for name in parameters}
    for pattern in patterns:
        if not any(matches(pattern, each) for both in names.values() for each in both):
            near = suggest(pattern, {name.rpartition(".")[2] for both in names.values() for name in both})
            raise UsageError(f"train: nothing is named {pattern!r}{near}", f"names look like {parameters[0]}")
    found = (name for name, both in names.items() if any(matches(p, each) for p in patterns for each in both))
    return frozenset(found)
