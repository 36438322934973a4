"""What facts speak of: an artifact by its headers, and what one engine asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat
from compress.passes.core.base import Product


@dataclass(frozen=True)
class Subject:
    """An artifact as facts see it: `options` are its dialect's, or what a file says of its quantization.

    `rounded` are the number formats that dense weights get when it is written; of one that lies there, none.
    """

    dialect: str
    model: ModelSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    rounded: Mapping[str, NumberFormat] = field(default_factory=dict)

    @classmethod
    def of(cls, product: Product) -> Subject:
        """An artifact that will be written."""
        return cls(product.dialect, product.model, product.options, product.rounded)

    @property
    def quantized(self) -> dict[str, TensorSpec]:
        """The quantized tensors, by name."""
        return {name: spec for name, spec in self.model.tensors.items() if spec.format is not None}

    @property
    def grids(self) -> dict[str, IntFormat]:
        """The integer grids of weights whose inputs are not rounded, by tensor."""
        return {
            name: spec.format
            for name, spec in self.quantized.items()
            if isinstance(spec.format, IntFormat) and module_of(name) not in self.model.activations
        }


Check = Callable[[Subject], str | None]
"""What is wrong with an artifact and what to change, or None."""


@dataclass(frozen=True)
class Fact:
    """What one engine, in the version that was looked at, asks of one dialect; `source` is where that stands.

    If it does not `refuse`, the engine loads what the check speaks of, but not everywhere, or not as it was written:
    with `needs`, only on a machine whose processor has that (see machine.py).
    """

    engine: str
    dialect: str
    version: str
    source: str
    check: Check
    refuse: bool = True
    needs: str = ""


def module_of(name: str) -> str:
    """The module that a weight belongs to."""
    return name.removesuffix(".weight")


def listed(values: Iterable[object]) -> str:
    """Values as a sentence names them."""
    return ", ".join(str(value) for value in values)
