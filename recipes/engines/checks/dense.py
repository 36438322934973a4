"""Linears that stayed dense, and linears that must."""

from __future__ import annotations

from collections.abc import Iterator

from compress.recipes.engines.subject import Subject, module_of


def no_dense_linears(subject: Subject) -> str | None:
    """No linear of a decoder layer stayed dense: none that a quantized one of another layer has the place of."""
    name = next(_dense_inside(subject), None)
    return name and f"{name} stayed dense, and all linears of the layers are taken for quantized; quantize it"


def no_dense_substring(subject: Subject) -> str | None:
    """No dense linear's name is part of a quantized one's: a router `mlp.gate` of `mlp.gate_proj`."""
    for dense in map(module_of, _dense_inside(subject)):
        if hidden := next((name for name in subject.quantized if dense in module_of(name)), None):
            return f"{hidden} is taken for dense: its name holds that of {dense}; quantize both or neither"
    return None


def dense_head(subject: Subject) -> str | None:
    """Only linears of the decoder layers are quantized."""
    outside = next((name for name in subject.quantized if ".*." not in _place(name)), None)
    return f"{outside} is quantized; leave it dense" if outside else None


def separate_head(subject: Subject) -> str | None:
    """The output projection is stored, not tied to the embedding."""
    tied = subject.model.config.get("tie_word_embeddings") and not subject.options.get("untie")
    return "it ties no embeddings; export with `untie: true`" if tied else None


def _dense_inside(subject: Subject) -> Iterator[str]:
    """The dense matrices in decoder layers that have quantized ones."""
    places = {_place(name) for name in subject.quantized}
    blocks = {place.partition(".*.")[0] for place in places if ".*." in place}
    for name, spec in subject.model.tensors.items():
        inside = any(_place(name).startswith(f"{block}.*.") for block in blocks)
        if inside and spec.format is None and len(spec.shape) == 2 and name.endswith(".weight"):
            yield name


def _place(name: str) -> str:
    """A tensor's name with `*` for the numbers in it."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
