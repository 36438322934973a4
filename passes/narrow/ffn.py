"""The feed-forward part of every decoder layer: what writes its inner channels, what reads them, what cuts them.

Found by shapes and siblings: one linear reads the inner channels, and the others beside it, which share an input,
write as many each. Every operator between is taken to work channel by channel, as activations and gates do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.passes.model.anatomy import Anatomy, LayerAnatomy

_SETTINGS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
"""What configurations call the width."""


@dataclass(frozen=True)
class FFN:
    """`ups` write the inner channels, `down` reads them: modules, by their names in the checkpoint."""

    ups: tuple[str, ...]
    down: str

    def axes(self, model: ModelSpec) -> Mapping[str, int]:
        """The tensors that hold something for each inner channel, and along which axis."""
        names = {f"{up}.{leaf}": 0 for up in self.ups for leaf in ("weight", "bias")}
        return {name: axis for name, axis in {**names, f"{self.down}.weight": 1}.items() if name in model.tensors}


def find_ffns(model: ModelSpec, anatomy: Anatomy) -> tuple[FFN, ...]:
    """That of each layer. Raises RefusedError where a layer has none of this form, or they differ in width."""
    found = tuple(_find(model, anatomy, index) for index in range(len(anatomy.layers)))
    widths = {width_of(model, ffn) for ffn in found}
    if len(widths) > 1:
        raise RefusedError(f"feed-forward layers are {sorted(widths)} wide", "engines load one width; leave ffn out")
    if not _settings(model, found[0]):
        raise RefusedError(
            f"config.json says nowhere that feed-forward layers are {widths.pop()} wide ({', '.join(_SETTINGS)})",
            "a narrower model could not be loaded; leave shrink out",
        )
    return found


def width_of(model: ModelSpec, ffn: FFN) -> int:
    """How many inner channels it has."""
    return model.tensors[f"{ffn.down}.weight"].shape[1]


def narrowed(model: ModelSpec, ffns: Sequence[FFN], width: int) -> ModelSpec:
    """The headers with `width` inner channels everywhere."""
    cut = {
        name: _with_extent(model.tensors[name], axis, width) for ffn in ffns for name, axis in ffn.axes(model).items()
    }
    settings = dict.fromkeys(_settings(model, ffns[0]), width)
    return replace(model, config={**model.config, **settings}, tensors={**model.tensors, **cut})


def cut(tensors: Mapping[str, Tensor], axes: Mapping[str, int], kept: Tensor) -> dict[str, Tensor]:
    """`tensors` with the channels `kept` [n] int64 alone."""
    return {name: tensor.index_select(axes[name], kept).contiguous() for name, tensor in tensors.items()}


def width_for(model: ModelSpec, anatomy: Anatomy, ffns: Sequence[FFN], part: float, multiple: int) -> int:
    """The largest width, in multiples, at which the layers have at most `part` of their parameters; may be ≤ 0."""
    inside = tuple(f"{layer.name}." for layer in anatomy.layers)
    total = sum(spec.size for name, spec in model.tensors.items() if name.startswith(inside))
    width = width_of(model, ffns[0])
    each = sum(model.tensors[name].size for ffn in ffns for name in ffn.axes(model)) // width
    most = (int(part * total) - (total - each * width)) // each
    return most // multiple * multiple


def _find(model: ModelSpec, anatomy: Anatomy, index: int) -> FFN:
    layer = anatomy.layers[index]
    found = list(_candidates(model, layer))
    if len(found) > 1 and (attention := anatomy.attentions()[index]):
        found = [ffn for ffn in found if not ffn.down.startswith(f"{attention.module}.")]
    if len(found) != 1 or layer.routers:
        raise RefusedError(
            f"{layer.name} has no feed-forward part of linears that write and one that reads its channels",
            "mixtures of experts and joined gate_up matrices cannot be narrowed; leave shrink out",
        )
    (ffn,) = found
    beside = f"{ffn.down.rpartition('.')[0]}."
    known, width = {*ffn.axes(model), f"{ffn.down}.bias"}, width_of(model, ffn)
    for name, spec in model.tensors.items():
        if name.startswith(beside) and beside != f"{layer.name}." and name not in known and width in spec.shape:
            raise RefusedError(f"{name} has a value for each channel, of a kind not known here", "leave shrink out")
    return ffn


def _candidates(model: ModelSpec, layer: LayerAnatomy) -> Iterator[FFN]:
    for number, names in enumerate(layer.siblings):
        parent = names[0].rpartition(".")[0]
        others = [each for each in layer.siblings if each is not names]
        ups = tuple(name for each in others for name in each if name.rpartition(".")[0] == parent)
        shared = any(set(ups) <= set(each) for each in layer.siblings[:number])  # in the order of the forward
        rows, columns = model.tensors[f"{names[0]}.weight"].shape
        fitting = all(model.tensors[f"{up}.weight"].shape == (columns, rows) for up in ups)
        if len(names) == 1 and ups and shared and fitting:
            yield FFN(ups, names[0])


def _settings(model: ModelSpec, ffn: FFN) -> tuple[str, ...]:
    return tuple(key for key in _SETTINGS if model.config.get(key) == width_of(model, ffn))


def _with_extent(spec: TensorSpec, axis: int, extent: int) -> TensorSpec:
    shape = list(spec.shape)
    shape[axis] = extent
    return replace(spec, shape=tuple(shape))


def ascending(dropped: Tensor, width: int) -> Tensor:
    """The channels of `width` that are not `dropped` [n] int64, ascending."""
    kept = torch.ones(width, dtype=torch.bool, device=dropped.device).index_fill(0, dropped, False)
    return kept.nonzero()[:, 0]
