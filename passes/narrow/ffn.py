"""The feed-forward part of every decoder layer: what writes its inner channels, what reads them, what cuts them.

Found by shapes and siblings: one linear reads the inner channels, and the others beside it, which share an input,
write as many each. Every operator between is taken to work channel by channel, as activations and gates do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.passes.model.anatomy import Anatomy, LayerAnatomy
from compress.passes.narrow.inner import Inner, size_of_unit

_SETTINGS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
"""What configurations call the width."""


def find_ffns(model: ModelSpec, anatomy: Anatomy) -> tuple[Inner, ...]:
    """That of each layer. Raises RefusedError where a layer has none of this form, or they differ in width."""
    found = tuple(_find(model, anatomy, index) for index in range(len(anatomy.layers)))
    widths = {ffn.units for ffn in found}
    if len(widths) > 1:
        raise RefusedError(f"feed-forward layers are {sorted(widths)} wide", "engines load one width; leave ffn out")
    if not _settings(model, found[0]):
        raise RefusedError(
            f"config.json says nowhere that feed-forward layers are {widths.pop()} wide ({', '.join(_SETTINGS)})",
            "a narrower model could not be loaded; leave shrink out",
        )
    return found


def narrowed(model: ModelSpec, ffns: Sequence[Inner], width: int) -> ModelSpec:
    """The headers with `width` inner channels everywhere."""
    tensors = {name: spec for ffn in ffns for name, spec in ffn.resized(model, width).items()}
    settings = dict.fromkeys(_settings(model, ffns[0]), width)
    return replace(model, config={**model.config, **settings}, tensors={**model.tensors, **tensors})


def layers_size(model: ModelSpec, anatomy: Anatomy) -> int:
    """How many parameters the layers have."""
    inside = tuple(f"{layer.name}." for layer in anatomy.layers)
    return sum(spec.size for name, spec in model.tensors.items() if name.startswith(inside))


def width_for(model: ModelSpec, anatomy: Anatomy, ffns: Sequence[Inner], most: int, multiple: int) -> int:
    """The largest width, in multiples, at which the layers have at most `most` parameters; may be ≤ 0."""
    each = size_of_unit(model, ffns)
    return (most - (layers_size(model, anatomy) - each * ffns[0].units)) // each // multiple * multiple


def _find(model: ModelSpec, anatomy: Anatomy, index: int) -> Inner:
    layer = anatomy.layers[index]
    found = list(_candidates(model, layer))
    if len(found) > 1 and (attention := anatomy.attentions()[index]):
        found = [ffn for ffn in found if not ffn.reader.startswith(f"{attention.module}.")]
    if len(found) != 1 or layer.routers:
        raise RefusedError(
            f"{layer.name} has no feed-forward part of linears that write and one that reads its channels",
            "mixtures of experts and joined gate_up matrices cannot be narrowed; leave shrink out",
        )
    (ffn,) = found
    beside = f"{ffn.reader.rpartition('.')[0]}."
    known, width = {*ffn.axes(model), f"{ffn.reader}.bias"}, ffn.units
    for name, spec in model.tensors.items():
        if name.startswith(beside) and beside != f"{layer.name}." and name not in known and width in spec.shape:
            raise RefusedError(f"{name} has a value for each channel, of a kind not known here", "leave shrink out")
    return ffn


def _candidates(model: ModelSpec, layer: LayerAnatomy) -> Iterator[Inner]:
    for number, names in enumerate(layer.siblings):
        parent = names[0].rpartition(".")[0]
        others = [each for each in layer.siblings if each is not names]
        ups = tuple(name for each in others for name in each if name.rpartition(".")[0] == parent)
        shared = any(set(ups) <= set(each) for each in layer.siblings[:number])  # in the order of the forward
        rows, columns = model.tensors[f"{names[0]}.weight"].shape
        fitting = all(model.tensors[f"{up}.weight"].shape == (columns, rows) for up in ups)
        if len(names) == 1 and ups and shared and fitting:
            yield Inner(ups, names[0], columns)


def _settings(model: ModelSpec, ffn: Inner) -> tuple[str, ...]:
    return tuple(key for key in _SETTINGS if model.config.get(key) == ffn.units)
