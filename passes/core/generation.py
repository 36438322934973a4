"""Text that a model writes: every token drawn from its own distribution, many sequences at a time, with a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from compress.passes.forward.backward import draw
from compress.passes.model.cache import cache_argument

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def continued(
    model: PreTrainedModel, ids: Tensor, begun: Tensor, uniform: Tensor, advance: Callable[[], None] = lambda: None
) -> Tensor:
    """`ids` [n, length] int64, of each row all but the first `begun` [n] ≥ 1 tokens drawn anew.

    They are drawn at temperature 1 from all tokens, by `uniform` [n, length] in [0, 1). `advance` is called for each
    position but the first. Prompts run through the model as what it writes does, a token of each row at a time, so
    rows may begin at any length.
    """
    ids, begun = ids.to(model.device, copy=True), begun.to(model.device)
    cache = {cache_argument(model.forward): _cache(model.config, ids.shape[1])}
    for position in range(1, ids.shape[1]):
        logits = model(ids[:, position - 1 : position], use_cache=True, **cache).logits[:, -1].float()
        drawn = draw(logits, uniform[:, position].to(logits.device))
        ids[:, position] = torch.where(position < begun, ids[:, position], drawn)
        advance()
    return ids.cpu()


def _cache(config: PreTrainedConfig, tokens: int) -> DynamicCache:
    """The cache that a model of `config` wants, with room for `tokens` where it would else be copied at every one."""
    cache = DynamicCache(config=config)
    cache.layers = [_Roomy(tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _Roomy(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer's keys and values, [batch, heads, tokens, width], in memory that is there from the start."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens, self._count = tokens, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [x.new_empty(*x.shape[:2], self._tokens, x.shape[3]) for x in (key_states, value_states)]
        start, self._count = self._count, self._count + key_states.shape[2]
        for room, states in zip(self._room, (key_states, value_states)):
            room[:, :, start : self._count] = states
        self.keys, self.values = (room[:, :, : self._count] for room in self._room)
        return self.keys, self.values
