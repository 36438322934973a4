"""What is to be left of a model that becomes smaller: how wide, how many; what cannot be is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.passes.model.anatomy import Anatomy
from compress.passes.narrow.ffn import find_ffns, layers_size, narrowed, width_for
from compress.passes.narrow.heads import find_groups, with_groups
from compress.passes.narrow.inner import Inner
from compress.passes.narrow.layers import fewer
from compress.passes.narrow.stream import ResidualStream, find_stream, stream_width_for, thinner

Axis = Literal["ffn", "kv_heads", "layers", "hidden"]
Sizes = Mapping[Axis, tuple[Sequence[Inner], int]]
"""What is narrowed within layers, by axis: the units that there are, and how many are to be left."""


@dataclass(frozen=True)
class Aim:
    """The part `to` of the layers' parameters by `axes`, or what is said of an axis; widths in multiples of `multiple`.

    Its methods raise RefusedError for what the model cannot be.
    """

    to: float | None
    axes: tuple[Axis, ...]
    ffn: int | None
    kv_heads: int | None
    layers: int | None
    hidden: int | None
    multiple: int

    @property
    def by_layers(self) -> bool:
        """Whether whole layers go."""
        return self.layers is not None or "layers" in self.axes

    @property
    def by_stream(self) -> bool:
        """Whether channels of the residual stream go."""
        return self.hidden is not None or "hidden" in self.axes

    def planned(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        """The headers of what is left."""
        if self.by_layers:
            return fewer(model, anatomy, self.layer_count(anatomy))
        if self.by_stream:
            stream = find_stream(model, anatomy)
            return thinner(model, anatomy, stream, self.stream_width(model, anatomy, stream))
        return self._resized(model, anatomy, self.sizes(model, anatomy))

    def layer_count(self, anatomy: Anatomy) -> int:
        """How many layers are to be left."""
        there = len(anatomy.layers)
        count = self.layers or int((self.to or 1.0) * there)
        if not 1 <= count < there:
            raise RefusedError(
                f"shrink: there are {there} layers, and {count} are to be left", f"say layers: 1 to {there - 1}"
            )
        return count

    def stream_width(self, model: ModelSpec, anatomy: Anatomy, stream: ResidualStream) -> int:
        """How many channels the residual stream is to have."""
        width = self.hidden or stream_width_for(model, anatomy, stream, self.to or 1.0, self.multiple)
        return self._width("hidden", width, stream.width)

    def sizes(self, model: ModelSpec, anatomy: Anatomy) -> Sizes:
        """What is to be left of what lies within layers."""
        sizes: dict[Axis, tuple[Sequence[Inner], int]] = {}
        if self.kv_heads or (self.to and "kv_heads" in self.axes):
            groups = find_groups(model, anatomy)
            if (kept := self._groups(groups)) < groups[0].units:
                sizes["kv_heads"] = groups, kept
        if self.ffn or (self.to and "ffn" in self.axes):
            ffns, smaller = find_ffns(model, anatomy), self._resized(model, anatomy, sizes)
            most = int((self.to or 1.0) * layers_size(model, anatomy))
            width = self.ffn or width_for(smaller, anatomy, ffns, most, self.multiple)
            sizes["ffn"] = ffns, self._width("ffn", width, ffns[0].units)
        return sizes

    @staticmethod
    def _resized(model: ModelSpec, anatomy: Anatomy, sizes: Sizes) -> ModelSpec:
        if "kv_heads" in sizes:
            model = with_groups(model, anatomy, *sizes["kv_heads"])
        return narrowed(model, *sizes["ffn"]) if "ffn" in sizes else model

    def _groups(self, groups: Sequence[Inner]) -> int:
        there = groups[0].units
        if self.to:
            return -int(-self.to * there // 1)
        if self.kv_heads is None or self.kv_heads >= there:
            raise RefusedError(
                f"shrink: attention has {there} heads of keys and values, and is to have {self.kv_heads}",
                "say a smaller number" if there > 1 else "leave kv_heads out",
            )
        return self.kv_heads

    def _width(self, axis: Axis, width: int, there: int) -> int:
        what = "feed-forward layers" if axis == "ffn" else "the residual stream"
        if width % self.multiple:
            nearest = max(1, round(width / self.multiple)) * self.multiple
            raise RefusedError(
                f"shrink: {axis}: {width} is no multiple of {self.multiple}",
                f"say {axis}: {nearest}, or another `multiple`",
            )
        if width <= 0:
            raise RefusedError(
                f"shrink: to: {self.to} leaves {what} no {self.multiple} channels",
                "say a larger part, more `axes`, or a smaller `multiple`",
            )
        if width >= there:
            raise RefusedError(
                f"shrink: {what}: there are {there} channels, and {width} are to be left", "say a smaller number"
            )
        return width
