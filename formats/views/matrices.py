"""Every linear layer's weight as a matrix [out, in] of its own, whatever form a model's files keep it in.

transformers keeps the weights of `Conv1D` (GPT-2) as [in, out], and those of a layer's experts stacked as
[experts, out, in] or [experts, in, out]. In between, the program knows matrices [out, in] only: `Matrices`
cuts them out of what is read, `Restored` puts them back together for writing. What is quantized stays as it
is: containers hold a quantized layer as [out, in], and experts one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec, Origin, TensorSpec
from compress.formats.views.view import View
from compress.kernels.qtensor import QTensor

T = TypeVar("T", Tensor, Tensor | QTensor)


class Matrices(View):
    """A checkpoint seen through `origins`: name of a linear layer's tensor → where the files may keep it."""

    def __init__(self, model: Checkpoint, origins: Mapping[str, Origin]) -> None:
        super().__init__(model, model.spec)
        self.origins = origins
        self._cuts = {name: origin for name, origin in origins.items() if _is_cut(name, origin, model.spec)}
        self._read = self.through(model.read)
        self.spec = replace(model.spec, tensors=self._tensors(origins))

    def _tensors(self, origins: Mapping[str, Origin]) -> dict[str, TensorSpec]:
        """The specs, in the files' order."""
        cut: dict[str, list[str]] = defaultdict(list)
        for name, origin in self._cuts.items():
            cut[origin.name].append(name)
        tensors = {}
        for stored, spec in self.inner.spec.tensors.items():
            for name in cut.get(stored, (stored,)):
                shape = _cut_shape(spec.shape, origins[name]) if name in self._cuts else spec.shape
                tensors[name] = replace(spec, shape=shape, origin=origins.get(name))
        return tensors

    def read(self, name: str) -> Tensor | QTensor:
        return self._read(name)

    def through(self, read: Callable[[str], T]) -> Callable[[str], T]:
        """The tensors by their names here, through `read`, which knows the names of the files.

        A layer's stacks are held until another layer's are asked for: their slices follow.
        """
        held: dict[str, T] = {}

        def whole(name: str) -> T:
            if name not in held:
                if any(_owner(other) != _owner(name) for other in held):
                    held.clear()
                held[name] = read(name)
            return held[name]

        def cut(name: str) -> T:
            origin = self._cuts.get(name)
            if origin is None:
                return read(name)
            return _cut_out(read(origin.name) if origin.index is None else whole(origin.name), origin)

        return cut


class Restored(View):
    """The opposite of `Matrices`: dense tensors in the form that the model's files keep them in.

    A decoder layer's experts are stacked again if all of them are dense; else each stays a tensor of its own.
    """

    def __init__(self, model: Checkpoint) -> None:
        super().__init__(model, restored_spec(model.spec))
        self._parts = _parts(model.spec)

    def read(self, name: str) -> Tensor | QTensor:
        if name not in self._parts:
            return self.inner.read(name)
        values = [self._part(part) for part in self._parts[name]]
        if _origin_of(self.inner.spec, self._parts[name][0]).index is None:
            return values[0]
        dtype = getattr(torch, self.spec.tensors[name].dtype)
        return torch.stack([value.to(dtype) for value in values])

    def _part(self, name: str) -> Tensor:
        value = self.inner.read(name)
        assert isinstance(value, Tensor)
        return value.T.contiguous() if _origin_of(self.inner.spec, name).transposed else value


def restored_spec(model: ModelSpec) -> ModelSpec:
    """The headers of `Restored`."""
    parts = _parts(model)
    stored = {part: name for name, held in parts.items() for part in held}
    tensors: dict[str, TensorSpec] = {}
    for name, spec in model.tensors.items():
        if name not in stored:
            tensors[name] = spec
        elif stored[name] not in tensors:
            tensors[stored[name]] = _joined(
                _origin_of(model, name), [model.tensors[part] for part in parts[stored[name]]]
            )
    return replace(model, tensors=tensors)


def _parts(model: ModelSpec) -> dict[str, list[str]]:
    """Tensor of the files → the dense tensors that it is put together from."""
    parts: dict[str, list[str]] = defaultdict(list)
    apart: set[str] = set()
    for name, spec in model.tensors.items():
        if spec.origin is not None:
            parts[spec.origin.name].append(name)
            if spec.format is not None:
                apart.add(_module(spec.origin))
    return {name: held for name, held in parts.items() if _module(_origin_of(model, held[0])) not in apart}


def _joined(origin: Origin, specs: list[TensorSpec]) -> TensorSpec:
    """The spec of the stored tensor; parts of different dtypes are joined in fp32, which holds them all."""
    dtypes = {spec.dtype for spec in specs}
    shape = specs[0].shape[::-1] if origin.transposed else specs[0].shape
    stacked = shape if origin.index is None else (len(specs), *shape)
    return TensorSpec(stacked, dtypes.pop() if len(dtypes) == 1 else "float32")


def _is_cut(name: str, origin: Origin, model: ModelSpec) -> bool:
    """Whether the files keep the tensor in its other form: not if they hold it quantized, or as one of its own."""
    stored = model.tensors.get(origin.name)
    return stored is not None and stored.format is None and (origin.name == name or name not in model.tensors)


def _cut_out(whole: Tensor | QTensor, origin: Origin) -> Tensor:
    assert isinstance(whole, Tensor)  # what is quantized is not cut
    part = whole if origin.index is None else whole[origin.index]
    return part.T.contiguous() if origin.transposed else part


def _cut_shape(shape: tuple[int, ...], origin: Origin) -> tuple[int, ...]:
    part = shape if origin.index is None else shape[1:]
    return part[::-1] if origin.transposed else part


def _module(origin: Origin) -> str:
    """What is restored together: a layer of its own, or all experts of a decoder layer with their biases."""
    return origin.name if origin.index is None else _owner(origin.name)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _origin_of(model: ModelSpec, name: str) -> Origin:
    origin = model.tensors[name].origin
    assert origin is not None
    return origin
