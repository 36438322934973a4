"""What lies inside a part of a layer, in units that can go whole: channels of a feed-forward layer, groups of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec


@dataclass(frozen=True)
class Inner:
    """`writers` write what `reader` reads: `units` one after the other. Modules, by their names in the checkpoint."""

    writers: tuple[str, ...]
    reader: str
    units: int

    def axes(self, model: ModelSpec) -> Mapping[str, int]:
        """The tensors that hold something for each unit, and along which axis."""
        names = {f"{writer}.{leaf}": 0 for writer in self.writers for leaf in ("weight", "bias")}
        return {name: axis for name, axis in {**names, f"{self.reader}.weight": 1}.items() if name in model.tensors}

    def resized(self, model: ModelSpec, units: int) -> dict[str, TensorSpec]:
        """The headers of these tensors with so many units."""
        return {name: self._resized(model.tensors[name], axis, units) for name, axis in self.axes(model).items()}

    def _resized(self, spec: TensorSpec, axis: int, units: int) -> TensorSpec:
        shape = list(spec.shape)
        shape[axis] = shape[axis] // self.units * units
        return replace(spec, shape=tuple(shape))

    def places(self, kept: Tensor, extent: int) -> Tensor:
        """Where the units `kept` [n] int64 lie along an axis of `extent`: [n · extent / units] int64."""
        size = extent // self.units
        return (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()

    def cut(self, tensors: Mapping[str, Tensor], axes: Mapping[str, int], kept: Tensor) -> dict[str, Tensor]:
        """`tensors` with the units `kept` [n] int64 alone."""
        return {
            name: tensor.index_select(axes[name], self.places(kept, tensor.shape[axes[name]])).contiguous()
            for name, tensor in tensors.items()
        }


def size_of_unit(model: ModelSpec, inners: Sequence[Inner]) -> int:
    """How many parameters there are for each unit, in all layers together."""
    return sum(model.tensors[name].size // inner.units for inner in inners for name in inner.axes(model))


def ascending(dropped: Tensor, units: int) -> Tensor:
    """Those of `units` that are not `dropped` [n] int64, ascending."""
    kept = torch.ones(units, dtype=torch.bool, device=dropped.device).index_fill(0, dropped, False)
    return kept.nonzero()[:, 0]
