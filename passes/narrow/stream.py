"""The residual stream: which tensors have a value for each of its channels, and what a narrower one is.

Embedding, head, norms, what reads the normed stream (the writers of every layer's inside) and what adds to it (their
readers). A root mean square over fewer channels is another: a norm's weight takes that in, and so does its epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.config import config_of
from compress.passes.narrow.ffn import find_ffns, layers_size
from compress.passes.narrow.heads import find_groups

_HIDDEN, _EPSILON, _WIDTH = "hidden_size", "rms_norm_eps", "head_dim"
_HINT = "leave hidden out, and make layers narrower (ffn, kv_heads) or fewer (layers)"


@dataclass(frozen=True)
class StreamLayer:
    """`readers` are linears that read the normed stream, siblings together; `writers` add to it, `norms` norm it."""

    readers: tuple[tuple[str, ...], ...]
    writers: tuple[str, ...]
    norms: tuple[str, ...]

    def axes(self, model: ModelSpec) -> dict[str, int]:
        """The layer's tensors that have a value for each channel, and along which axis."""
        reading = {f"{name}.weight": 1 for names in self.readers for name in names}
        writing = {f"{name}.{leaf}": 0 for name in self.writers for leaf in ("weight", "bias")}
        found = {**reading, **writing, **{f"{name}.weight": 0 for name in self.norms}}
        return {name: axis for name, axis in found.items() if name in model.tensors}


@dataclass(frozen=True)
class ResidualStream:
    """`width` channels; `norm` is the module after the last layer."""

    layers: tuple[StreamLayer, ...]
    norm: str
    width: int

    def axes(self, model: ModelSpec, anatomy: Anatomy) -> dict[str, int]:
        """All tensors that have a value for each channel, and along which axis."""
        ends = {anatomy.embedding: 1, anatomy.head: 1, f"{self.norm}.weight": 0}
        found = {name: axis for layer in self.layers for name, axis in layer.axes(model).items()}
        return {**found, **{name: axis for name, axis in ends.items() if name in model.tensors}}


def find_stream(model: ModelSpec, anatomy: Anatomy) -> ResidualStream:
    """The stream of a model. Raises RefusedError for one whose parts are not known, or are not made for this."""
    width = model.tensors[anatomy.embedding].shape[1]
    family = str(model.config.get("model_type"))
    if model.config.get(_HIDDEN) != width or _EPSILON not in model.config:
        raise RefusedError(f"{family}: config.json has no {_HIDDEN} of {width}, or no {_EPSILON} of its norms", _HINT)
    if family.startswith("gemma"):
        raise RefusedError(f"{family} multiplies embeddings by the root of their width", _HINT)
    layers = []
    for layer, ffn, group in zip(anatomy.layers, find_ffns(model, anatomy), find_groups(model, anatomy)):
        reading = {*ffn.writers, *group.writers}
        readers = tuple(tuple(name for name in names if name in reading) for names in layer.siblings)
        norms = _norms(model, f"{layer.name}.", width)
        layers.append(StreamLayer(tuple(filter(None, readers)), (group.reader, ffn.reader), norms))
    outside = [name for name in _norms(model, "", width) if not name.startswith(_prefixes(anatomy))]
    if len(outside) != 1:
        raise RefusedError(f"{len(outside)} norms, not one, come after the last layer", _HINT)
    stream = ResidualStream(tuple(layers), outside[0], width)
    _refuse_others(model, anatomy, stream)
    return stream


def thinner(model: ModelSpec, anatomy: Anatomy, stream: ResidualStream, width: int) -> ModelSpec:
    """The headers with so many channels. Raises RefusedError where the model's own code takes no such."""
    heads = next(heads for heads in anatomy.heads() if heads)
    epsilon = float(model.config[_EPSILON]) * stream.width / width
    config = {**model.config, _HIDDEN: width, _WIDTH: heads.width, _EPSILON: epsilon}
    try:
        made = config_of(config, Path(model.name))
    except InputError as error:
        raise RefusedError(
            f"shrink: hidden: {width}: {error}", f"say a multiple of {heads.count}, and a `multiple` that fits"
        ) from error
    if getattr(made, _WIDTH, None) != heads.width:
        raise RefusedError(f"{model.config.get('model_type')} has no {_WIDTH} of its own", _HINT)
    tensors = {name: _resized(model.tensors[name], axis, width) for name, axis in stream.axes(model, anatomy).items()}
    return replace(model, config=config, tensors={**model.tensors, **tensors})


def stream_width_for(model: ModelSpec, anatomy: Anatomy, stream: ResidualStream, part: float, multiple: int) -> int:
    """The largest width, in multiples, at which the layers have at most `part` of their parameters; may be ≤ 0."""
    names = (name for layer in stream.layers for name in layer.axes(model))
    each = sum(model.tensors[name].size // stream.width for name in names)
    size = layers_size(model, anatomy)
    return (int(part * size) - (size - each * stream.width)) // each // multiple * multiple


def _resized(spec: TensorSpec, axis: int, width: int) -> TensorSpec:
    shape = list(spec.shape)
    shape[axis] = width
    return replace(spec, shape=tuple(shape))


def _prefixes(anatomy: Anatomy) -> tuple[str, ...]:
    return tuple(f"{layer.name}." for layer in anatomy.layers)


def _norms(model: ModelSpec, prefix: str, width: int) -> tuple[str, ...]:
    vectors = (name for name, spec in model.tensors.items() if name.startswith(prefix) and spec.shape == (width,))
    return tuple(name.removesuffix(".weight") for name in vectors if name.endswith(".weight"))


def _refuse_others(model: ModelSpec, anatomy: Anatomy, stream: ResidualStream) -> None:
    """Raise RefusedError for a tensor that has a value for each channel, of a kind not known here."""
    inside = {name for layer in stream.layers for names in layer.readers for name in names}  # whose biases are not
    known = stream.axes(model, anatomy)
    for name, spec in model.tensors.items():
        if name not in known and name.rpartition(".")[0] not in inside and stream.width in spec.shape:
            raise RefusedError(f"{name} has a value for each channel, of a kind not known here", _HINT)
