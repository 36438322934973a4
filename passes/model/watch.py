"""Who looks at what attention caches: the keys and values of a layer, seen or changed on their way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.passes.model.sequences import Sequences

Watch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Keys and values [batch, heads, tokens, width] → those that attention sees."""


class Peaks:
    """The largest |key| and |value| of every head: `keys`, `values` [heads] fp32. Padding does not count."""

    def __init__(self) -> None:
        self.keys = self.values = torch.zeros(())

    def watch(self, sequences: Sequences) -> Watch:
        """Notes what is cached for `sequences`, and changes nothing."""
        mask = None if sequences.mask is None else sequences.mask[:, None, :, None]

        def note(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            self.keys = torch.maximum(self.keys, _peak(keys, mask))
            self.values = torch.maximum(self.values, _peak(values, mask))
            return keys, values

        return note


def _peak(states: Tensor, mask: Tensor | None) -> Tensor:
    magnitude = states.abs() if mask is None else states.abs() * mask.to(states.device)
    return magnitude.amax((0, 2, 3)).float().cpu()
