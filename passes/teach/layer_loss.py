"""What one decoder layer is to learn: to give the teacher's hidden states for those that its student comes with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compress.passes.forward.hidden import HiddenStates
from compress.passes.model.sequences import Sequences
from compress.passes.teach.features import relative_error
from compress.passes.train.examples import Examples
from compress.passes.train.loop import Objective
from compress.passes.train.options import Precision

Forward = Callable[[nn.Module, Tensor, Sequences], Tensor]
"""(a layer, hidden states [n, length, width], their sequences) → what the layer gives, [n, length, width]."""


class Given:
    """The hidden states of a boundary: any of its `count` sequences, in any order; `held` in memory, or read anew."""

    def __init__(self, hidden: HiddenStates, boundary: int, count: int, held: bool) -> None:
        self._hidden, self._boundary = hidden, boundary
        self._held = hidden.read(boundary, 0, count) if held else None

    def __call__(self, indices: Tensor) -> Tensor:
        """[n, length, width] fp32 of the sequences `indices` [n]."""
        if self._held is not None:
            return self._held[indices]
        return torch.cat([self._hidden.read(self._boundary, index, index + 1) for index in indices.tolist()])


class LayerLoss(Objective):
    """Σ over scored tokens of ‖y − t‖² / ‖t‖²: y what `layer` gives for `inputs`, t the teacher's `targets`.

    The inputs are the student's own, so a layer makes up for what those before it have lost. `index` gives the
    places [n] in both of rows [n] as the loop numbers them.
    """

    def __init__(
        self,
        layer: nn.Module,
        forward: Forward,
        inputs: Given,
        targets: Given,
        index: Callable[[Tensor], Tensor],
        precision: Precision,
    ) -> None:
        super().__init__()
        self.layer = layer
        self._forward, self._inputs, self._targets = forward, inputs, targets
        self._index, self._precision = index, precision

    def forward(self, examples: Examples, rows: Tensor) -> Tensor:
        indices, scored = self._index(rows), examples.scored()
        device = next(self.layer.parameters()).device
        inputs, targets = self._inputs(indices).to(device), self._targets(indices)[:, :-1][scored].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            found = self._forward(self.layer, inputs, examples.sequences)
        return relative_error(found[:, :-1][scored.to(device)], targets).sum()
