"""Decoder layers of one build: what one of them shows when it is traced, all of them would show."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from compress.passes.model.anatomy import Call, Trace, trace

_VALUES = (str, bytes, int, float, complex, torch.dtype, torch.device, type, type(None))
_SERIES = (list, tuple, set, frozenset)


@dataclass(frozen=True)
class Structure:
    """All that a layer's code can go by: types, shapes, settings, and how it is called; no value of a tensor.

    `index` is the layer's number. `leaves` are in the order in which they were found.
    """

    index: int
    leaves: tuple[object, ...]

    def alike(self, other: Structure) -> bool:
        """Whether the two differ in nothing but their number, where both hold it."""
        if len(self.leaves) != len(other.leaves):
            return False
        differing = [(mine, yours) for mine, yours in zip(self.leaves, other.leaves) if mine != yours]
        return all(type(mine) is int and (mine, yours) == (self.index, other.index) for mine, yours in differing)


class Traces:
    """What the layers of a model show, each build traced once. `count` is how many layers there are."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen: list[tuple[Structure, Trace]] = []

    def of(self, layer: nn.Module, index: int, call: Call, hidden: Tensor) -> Trace:
        """What `trace` gives for a copy of the weightless `layer` of that number. Raises what it raises."""
        mine = Structure(index, tuple(_leaves((layer, call.args, call.kwargs), index, self._count)))
        for structure, traced in self._seen:
            if structure.alike(mine):
                return traced
        traced = trace(copy.deepcopy(layer), call, hidden)
        self._seen.append((mine, traced))
        return traced


def _leaves(value: object, index: int, count: int) -> Iterator[object]:
    """What can be compared of `value`. What is of no known type is like nothing but itself."""
    yield type(value)
    if isinstance(value, Tensor):
        yield from (value.shape, value.dtype)
    elif isinstance(value, nn.Module):
        yield from _leaves(vars(value), index, count)
    elif isinstance(value, PreTrainedConfig):
        yield id(value)
        lists = (item for item in vars(value).values() if isinstance(item, list) and len(item) == count)
        for one_a_layer in lists:  # as `layer_types`: code may look its own entry up
            yield from _leaves(one_a_layer[index], index, count)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item, index, count)
    elif isinstance(value, _SERIES):
        yield len(value)
        for item in value:
            yield from _leaves(item, index, count)
    elif isinstance(value, partial):
        yield from _leaves((value.func, value.args, value.keywords), index, count)
    else:
        yield value if isinstance(value, _VALUES) else id(value)
