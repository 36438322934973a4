"""Hugging Face's tensors out of GGUF's, and back: rows in order, experts one by one or stacked, halves put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec, TensorSpec
from compress.formats.gguf.blocks.base import BlockType
from compress.formats.gguf.names import Dims, Place, reorder, row_order
from compress.kernels.qtensor import QTensor


@dataclass(frozen=True)
class Source:
    """Where GGUF keeps one of Hugging Face's tensors: in `places` side by side, there in the slice `expert`."""

    places: tuple[Place, ...]
    expert: int | None

    def spec(self, kinds: Sequence[BlockType]) -> TensorSpec:
        """What `join` gives of tensors of these types."""
        place = self.places[0]
        found = {kind.spec(place.shape) for kind in kinds}
        spec = found.pop() if len(found) == 1 else TensorSpec(place.shape, "float32")
        if place.plus:
            return TensorSpec(place.shape, "float32")
        turned = _turned(place, place.hf[0], spec.format is None)
        return TensorSpec(place.shape[::-1], spec.dtype) if turned else spec


def sources(places: Iterable[Place]) -> dict[str, Source]:
    """Every tensor of Hugging Face's by its first name, in the order of GGUF's."""
    found: dict[str, Source] = {}
    for place in places:
        for expert in range(place.experts) if place.experts else (None,):
            name = place.names(expert)[0]
            before = found[name].places if name in found else ()
            found[name] = Source((*before, place), expert)
    return found


def join(source: Source, parts: Sequence[Tensor | QTensor], dims: Dims) -> Tensor | QTensor:
    """Hugging Face's tensor of what GGUF has in each place, rows in their order."""
    place, whole = source.places[0], _side_by_side(parts)
    orders = [row_order(place, dims) for place in source.places]
    if orders[0] is not None:
        whole = reorder(whole, torch.cat([order for order in orders if order is not None]).argsort())
    if place.plus:
        whole = (whole.dequantize() if isinstance(whole, QTensor) else whole.float()) - place.plus
    if isinstance(whole, Tensor):
        whole = whole.reshape(place.shape)
        return whole.T.contiguous() if _turned(place, place.hf[0], dense=True) else whole
    return whole


def _turned(place: Place, name: str, dense: bool) -> bool:
    """Whether files have the tensor `name` as [in, out]: so they have experts in a stack only."""
    return place.transposed and dense and (not place.experts or name == place.stack)


def _side_by_side(parts: Sequence[Tensor | QTensor]) -> Tensor | QTensor:
    """All rows of `parts`, one behind the other; their values, if their formats differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    same = [part for part in parts if isinstance(part, QTensor) and isinstance(first, QTensor)]
    if len(same) == len(parts) and len({part.format for part in same}) == 1:
        params = {name: torch.cat([part.params[name] for part in same]) for name in same[0].params}
        return QTensor(same[0].format, torch.cat([part.codes for part in same]), params)
    return torch.cat([part.dequantize() if isinstance(part, QTensor) else part.float() for part in parts])


def found_in(place: Place, model: ModelSpec) -> tuple[str, ...]:
    """The tensors of `model` that `place` is made of: one, a stack of all experts, or one an expert; () if none."""
    if place.stack in model.tensors:
        return (place.stack,)
    for spelling in range(len(place.hf)):
        names = tuple(place.names(expert)[spelling] for expert in range(place.experts or 1))
        if all(name in model.tensors for name in names):
            return names
    return ()


def shape_in(place: Place, name: str, spec: TensorSpec) -> tuple[int, ...]:
    """The shape that the tensor `name` of a model has to have for `place`."""
    shape = place.shape[::-1] if _turned(place, name, spec.format is None) else place.shape
    return (place.experts, *shape) if name == place.stack else shape


def matrices(place: Place, names: Sequence[str], model: Checkpoint, dims: Dims) -> Iterator[Tensor | QTensor]:
    """What lies in `place`, in GGUF's order of rows: one tensor, or one an expert."""
    order = row_order(place, dims)
    for name in names:
        whole = model.read(name)
        turned = _turned(place, name, isinstance(whole, Tensor))
        slices = whole.unbind() if isinstance(whole, Tensor) and name == place.stack else (whole,)
        for matrix in slices:
            matrix = matrix.T if turned and isinstance(matrix, Tensor) else matrix
            matrix = matrix if order is None else reorder(matrix, order)
            if isinstance(matrix, Tensor):
                matrix = matrix.float() + place.plus if place.plus else matrix
                matrix = matrix.reshape(-1) if place.flat else matrix.contiguous()
            yield matrix
