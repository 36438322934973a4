"""Checkpoints that were quantized in memory, as passes leave them for an export."""

from dataclasses import replace

import pytest
import torch

from compress.formats.base import Checkpoint, TensorSpec
from compress.kernels.qtensor import quantize


class InMemory(Checkpoint):
    """`inner`, with the tensors that `formats` names rounded to the nearest value of their number format."""

    def __init__(self, inner, formats):
        self.inner, self.formats = inner, formats
        self.path, self.dialect = inner.path, "memory"
        tensors = {name: replace(spec, format=formats.get(name)) for name, spec in inner.spec.tensors.items()}
        self.spec = replace(inner.spec, tensors=tensors)

    def read(self, name):
        weight = self.inner.read(name)
        if name not in self.formats:
            return weight
        return quantize(weight.float(), self.formats[name], self.formats[name].fit(weight.float()))

    def files(self):
        return self.inner.files()

    def nbytes(self):
        return self.inner.nbytes()


@pytest.fixture
def in_memory():
    """in_memory(checkpoint, {name: number format}) → a quantized checkpoint."""
    return InMemory


class Rounding(Checkpoint):
    """`inner`, whose quantized layers round their inputs, and whose cache is rounded."""

    def __init__(self, inner, inputs, cache=None):
        self.inner, self.path, self.dialect = inner, inner.path, "memory"
        modules = [name.removesuffix(".weight") for name in inner.formats]
        self.scales = {}
        if inputs and not inputs.dynamic:
            self.scales = {f"{name}.input_scale": torch.tensor([0.1 + len(name)]) for name in modules}
        attention = [name.removesuffix(".q_proj") for name in modules if name.endswith(".q_proj")]
        if cache:
            count = 2 if cache.per == "head" else 1
            names = [f"{module}.{kind}_scale" for module in attention for kind in "kv"]
            self.scales |= {name: torch.rand(count) + 0.01 for name in names}
        specs = {name: TensorSpec(tuple(scale.shape), "float32") for name, scale in self.scales.items()}
        self.spec = replace(
            inner.spec,
            tensors={**inner.spec.tensors, **specs},
            activations=dict.fromkeys(modules, inputs) if inputs else {},
            kv_cache=cache,
        )

    def read(self, name):
        return self.scales[name] if name in self.scales else self.inner.read(name)

    def files(self):
        return self.inner.files()

    def nbytes(self):
        return self.inner.nbytes()


@pytest.fixture
def with_rounding():
    """with_rounding(quantized checkpoint, format of the inputs or None, format of the cache or None)."""
    return Rounding
