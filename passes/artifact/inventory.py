"""What became of every tensor: written into an artifact, so that it can be checked without its source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec, TensorSpec
from compress.formats.errors import InputError
from compress.kernels.qtensor import QTensor

State = Literal["quantized", "rewritten", "copied", "converted", "added", "tied", "dropped"]
"""`rewritten`: dense, with values of a pass's choosing. `converted`: dense in another dtype, or decoded.

`added`: the source has no such tensor. `tied`: the embedding stands for it. `dropped`: it is not in the artifact.
"""
_ABSENT = ("tied", "dropped")


class Entry(BaseModel):
    """One tensor: its state, the pass or container that brought it there, and what the artifact holds of it.

    `format` is a number format's name or a dtype. `sha256` are digests of the tensor's bytes, of the codes and
    of every parameter if it is quantized, as our reader gives them: independent of how the container packs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    state: State
    by: str
    format: str = ""
    shape: tuple[int, ...] = ()
    sha256: Mapping[str, str] = {}


Inventory = Mapping[str, Entry]


@dataclass(frozen=True)
class Reading:
    """What our reader gave of a tensor: digests as in an `Entry`, and whether it is dense and bit for bit as meant."""

    sha256: Mapping[str, str]
    kept: bool


def take_inventory(
    artifact: ModelSpec,
    model: ModelSpec,
    source: ModelSpec,
    readings: Mapping[str, Reading],
    authors: Mapping[str, str],
    *,
    container: str,
    rewritten: frozenset[str],
    tied: str | None,
) -> dict[str, Entry]:
    """Every tensor of `source` and of `artifact`, which was written from `model` and read as `readings` say.

    `authors` says which passes rewrote a tensor, `rewritten` which tensors are not the source's any more; `tied`
    names the head's own tensor where the embedding may stand for it. `container` is credited with the rest.
    """

    def entry(name: str) -> Entry:
        author = authors.get(name, "")
        if name not in artifact.tensors:
            by = container if name in model.tensors else author or "a pass"
            return Entry(state="tied" if name == tied else "dropped", by=by)
        spec, reading = artifact.tensors[name], readings[name]
        original = source.tensors.get(name)
        state, by = _state(spec, original, author, container, reading.kept and name not in rewritten)
        return Entry(state=state, by=by, format=format_name(spec), shape=spec.shape, sha256=reading.sha256)

    return {name: entry(name) for name in dict.fromkeys([*source.tensors, *artifact.tensors])}


def _state(spec: TensorSpec, original: TensorSpec | None, author: str, container: str, kept: bool) -> tuple[State, str]:
    if spec.format is not None:
        return "quantized", author or ("the source" if original is not None and original.format else container)
    if author:
        return "rewritten", author
    if original is None:
        return "added", container
    return "copied" if kept and original.format is None else "converted", container


def format_name(spec: TensorSpec) -> str:
    """The name of a tensor's number format, or of its dtype if it is dense."""
    return spec.format.name if spec.format else spec.dtype


def bits_of(tensor: TensorSpec) -> float:
    """Bits per weight, scales and zero points included, whatever the container adds."""
    if tensor.format:
        return tensor.format.bits_per_weight(tensor.shape)
    dtype = getattr(torch, tensor.dtype)
    return float(dtype.itemsize * 8)


def digests(tensor: Tensor | QTensor) -> dict[str, str]:
    """SHA-256, in hexadecimal, of the bytes of a tensor's parts."""
    parts = {"codes": tensor.codes, **tensor.params} if isinstance(tensor, QTensor) else {"values": tensor}
    return {part: _sha256(value) for part, value in sorted(parts.items())}


def _sha256(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def check_inventory(
    artifact: Checkpoint, inventory: Inventory, readings: Mapping[str, Reading]
) -> Iterator[tuple[str, str]]:
    """Where and how the artifact's tensors are not those of the inventory; reads all that `readings` do not know."""
    present = {name: entry for name, entry in inventory.items() if entry.state not in _ABSENT}
    for name in sorted(artifact.spec.tensors.keys() - present.keys()):
        yield name, "is in the artifact, and its inventory does not know it"
    for name, entry in present.items():
        if name not in artifact.spec.tensors:
            yield name, f"is missing; it should be there, {entry.state}"
        elif what := _difference(artifact, name, entry, readings.get(name)):
            yield name, what


def _difference(artifact: Checkpoint, name: str, entry: Entry, reading: Reading | None) -> str:
    spec = artifact.spec.tensors[name]
    found, recorded = (format_name(spec), spec.shape), (entry.format, entry.shape)
    if found != recorded:
        return f"is {found[0]} {list(found[1])}, was {recorded[0]} {list(recorded[1])}"
    try:
        seen = reading.sha256 if reading else digests(artifact.read(name))
    except InputError as error:
        return f"cannot be read: {error}"
    changed = [part for part in seen.keys() | entry.sha256.keys() if seen.get(part) != entry.sha256.get(part)]
    return f"has other {' and '.join(sorted(changed))} than were written" if changed else ""
