"""Scales of the inputs of siblings, folded into the op before: what is committed, and what is left alone.

In the sweep's one forward their inputs x have already gone through the old op. So the forward goes on with
Q(W·diag(s))·diag(1/s), while Q(W·diag(s)) and the op divided by s are committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.kernels.qtensor import QTensor
from compress.passes.model.anatomy import LayerAnatomy
from compress.passes.model.sequences import Sequences
from compress.passes.sweep.fold_search import UNKNOWN, Found, find_folds, spread

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton

Read = Callable[[str], Tensor | QTensor]

_TOKENS = 16


@dataclass(frozen=True)
class Fold:
    """An op that takes the scale of the linears `siblings`; `op` and the keys of `offsets` are the checkpoint's names.

    `read` gives tensors as the run has left them so far.
    """

    siblings: frozenset[str]
    op: str
    offsets: Mapping[str, float]
    found: Found
    read: Read

    def refusal(self, scale: Tensor) -> str:
        """Why the op, as it is stored by now, cannot take this tied scale [in]; empty if it can."""
        rows = self._by_row(scale)
        for name in self.offsets:
            tensor = self.read(name)
            if isinstance(tensor, QTensor) and tensor.times_rows(rows.reciprocal().to(tensor.codes.device)) is None:
                return f"{name} is {tensor.format.name}, whose rows do not take the scale"
        return ""

    def tie(self, scale: Tensor) -> Tensor:
        """The nearest scale [in] that can be folded: inputs from one output of the op share one (their geometric mean).

        A norm's is such that bfloat16 holds its new weight exactly: whatever the container, nothing is rounded.
        """
        rows = self._by_row(scale)
        if self.found.norm:
            name, offset = next(iter(self.offsets.items()))
            rows = _exact(self.read(name), offset, rows)
        source = self.found.source.to(scale.device)
        return torch.where(source != UNKNOWN, rows[source], 1.0)

    def folded(self, scale: Tensor) -> dict[str, Tensor | QTensor]:
        """The op's parameters divided by a tied `scale` [in], as they are to be committed."""
        rows = self._by_row(scale)
        return {name: self._divided(self.read(name), rows, offset) for name, offset in self.offsets.items()}

    def _divided(self, tensor: Tensor | QTensor, rows: Tensor, offset: float) -> Tensor | QTensor:
        if isinstance(tensor, QTensor):
            scaled = tensor.times_rows(rows.reciprocal().to(tensor.codes.device))
            assert scaled is not None  # refusal() let nothing else through
            return scaled
        values = tensor.to(rows)
        return (values + offset) / spread(rows, values) - offset

    def _by_row(self, scale: Tensor) -> Tensor:
        """The factor of each output of the op: [rows] fp32, 1 where it feeds no input."""
        # On the CPU: a GPU adds what shares a place in any order, and a run would not repeat itself bit by bit.
        source = self.found.source
        known = source != UNKNOWN
        logs = torch.zeros(self.found.outputs).index_add_(0, source[known], scale.float().cpu()[known].log())
        return (logs / torch.bincount(source[known], minlength=len(logs)).clamp(min=1)).exp().to(scale.device)


def _exact(weight: Tensor | QTensor, offset: float, factors: Tensor) -> Tensor:
    """The factors nearest to `factors` [n] that a norm's weight [n] can be divided by without leaving bfloat16."""
    assert isinstance(weight, Tensor)
    old = weight.to(factors) + offset
    new = (old / factors - offset).bfloat16().float() + offset
    exact = old / new
    return torch.where(exact.isfinite() & (exact > 0), exact, 1.0)


class Folds:
    """Finds the folds of each layer of a skeleton, on random hidden states."""

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        generator = torch.Generator().manual_seed(0)
        self._rows = Sequences(torch.zeros(1, _TOKENS, dtype=torch.int64))
        self._hidden = torch.randn(1, _TOKENS, skeleton.width, generator=generator).to(skeleton.device)

    def of(self, index: int, module: nn.Module, read: Read) -> dict[str, Fold]:
        """The folds of the filled layer `module`, by each linear that shares in them."""
        layer = self._skeleton.anatomy.layers[index]
        siblings = [[layer.modules[name] for name in names] for names in layer.siblings]
        forward = partial(self._skeleton.run, module, self._hidden, self._skeleton.call(index, self._rows))
        found = find_folds(module, siblings, forward)
        folds: dict[str, Fold] = {}
        for names in layer.siblings:
            if (one := found[layer.modules[names[0]]]) is not None:
                folds.update(dict.fromkeys(names, self._fold(layer, names, one, read)))
        return folds

    def _fold(self, layer: LayerAnatomy, names: tuple[str, ...], found: Found, read: Read) -> Fold:
        offsets = {
            self._skeleton.stored(f"{layer.name}.{found.op}.{parameter}"): offset
            for parameter, offset in found.offsets.items()
        }
        op = next(iter(offsets)).rpartition(".")[0]
        return Fold(frozenset(names), op, offsets, found, read)
