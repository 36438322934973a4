"""A checkpoint whose weights were quantized in memory, as a pass leaves it for an export."""

from dataclasses import replace

import pytest

from compress.formats.base import Checkpoint
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
