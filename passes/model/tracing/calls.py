"""How a model calls its decoder layers: recorded by what stands in for them, whatever the architecture."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from compress.passes.model.anatomy import Call, Trace
from compress.passes.model.cache import cache_argument, placeholder
from compress.passes.model.sequences import Sequences
from compress.passes.model.tracing.stand_in import StandIn


class Calls:
    """How `hollow`, a model without weights, calls each of its layers; hidden states are `width` wide."""

    def __init__(self, hollow: Any, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._hollow, self._width, self._dtype, self._device = hollow, width, dtype, device
        self._last: tuple[tuple[int, int, bool], list[Call]] | None = None

    def of(self, sequences: Sequences, cached: bool) -> list[Call]:
        """One for each layer, with what it caches if `cached`; the same for all unpadded sequences of one shape."""
        if sequences.mask is not None:
            return self._recorded(sequences, cached)
        key = (sequences.count, sequences.length, cached)
        if self._last is None or self._last[0] != key:
            self._last = key, self._recorded(sequences, cached)
        return self._last[1]

    def probed(self, count: int, cached: bool) -> list[Call]:
        """Those for so many short sequences, to trace with: what they hold does not matter."""
        return self._recorded(Sequences(torch.zeros(count, 4, dtype=torch.int64)), cached)

    def traced(self) -> list[Trace]:
        """What each layer shows when it is called."""
        self.probed(1, cached=False)
        return [stand_in.traced for stand_in in stand_ins(self._hollow) if stand_in.traced is not None]

    def _recorded(self, sequences: Sequences, cached: bool) -> list[Call]:
        embeds = torch.zeros(sequences.count, sequences.length, self._width, dtype=self._dtype, device=self._device)
        with torch.no_grad():
            base, mask = self._hollow.base_model, inputs_of(sequences, self._device)[1]
            cache = {cache_argument(base.forward): placeholder(self._hollow.config)} if cached else {}
            base(inputs_embeds=embeds, attention_mask=mask, use_cache=cached, **cache)
        return [cast(Call, stand_in.call) for stand_in in stand_ins(self._hollow)]


def inputs_of(sequences: Sequences, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Tokens, and the mask if there is padding, as transformers' models take them."""
    mask = None if sequences.mask is None else sequences.mask.to(device, torch.int64)
    return sequences.ids.to(device), mask


def stand_ins(model: nn.Module) -> list[StandIn]:
    """What stands in for the layers of `model`, in their order."""
    return [module for module in model.modules() if isinstance(module, StandIn)]
