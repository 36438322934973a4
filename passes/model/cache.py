"""What attention puts in its key/value cache: seen, and changed, where transformers' own code hands it over.

Any layer that takes a cache calls its `update` with new keys (after the rotary embedding) and values
[batch, heads, tokens, width], and goes on with what it gets back. So nothing here knows an architecture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import DynamicCache, PreTrainedConfig

from compress.kernels.numbers.activations import CacheFormat, grid_scale, round_to_grid
from compress.passes.model.anatomy import Attention, Call, run_weightless
from compress.passes.model.watch import Watch
from compress.passes.model.weights import Weights


class WatchedCache(DynamicCache):  # type: ignore[misc]  # transformers has no types
    """A cache that keeps no keys or values: one forward over whole sequences needs no memory of earlier ones.

    `config` is the model's, which says what else its layers keep (the state of a convolution).
    """

    def __init__(self, config: PreTrainedConfig, watch: Watch) -> None:
        super().__init__(config=config)
        self._watch = watch

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._watch(key_states, value_states)


def placeholder(config: PreTrainedConfig) -> WatchedCache:
    """A cache to record calls with; `with_cache` puts another in its place."""
    return WatchedCache(config, lambda keys, values: (keys, values))


def cache_argument(forward: Callable[..., Any]) -> str:
    """What `forward` calls the cache that it takes: `past_key_values`, or from transformers 5.24 on, `cache`."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def with_cache(call: Call, config: PreTrainedConfig, watch: Watch) -> Call:
    """`call` with a cache that `watch` sees into, in the place of the one it was recorded with."""
    cache = WatchedCache(config, watch)

    def swap(value: Any) -> Any:
        return cache if isinstance(value, WatchedCache) else value

    args, kwargs = tree_map(swap, (call.args, call.kwargs), is_leaf=lambda value: isinstance(value, WatchedCache))
    return Call(args, kwargs)


def find_attention(layer: nn.Module, call: Call, hidden: Tensor, config: PreTrainedConfig) -> Attention | None:
    """Run `layer` on meta tensors and note which module of it updates its cache; None if none does.

    `call` was recorded with a cache; `hidden` is [batch, tokens, width], `config` the model's.
    """
    running: list[str] = []
    found: list[Attention] = []

    def note(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        found.append(Attention(running[-1], keys.shape[1]))
        return keys, values

    for name, module in layer.named_modules():
        module.register_forward_pre_hook(lambda _, args, name=name: running.append(name))
        module.register_forward_hook(lambda _, args, output: _drop_last(running))
    run_weightless(layer, with_cache(call, config, note), hidden)
    return found[0] if found else None


def _drop_last(running: list[str]) -> None:
    running.pop()  # a hook that returned the name would change the module's output


def rounding(number_format: CacheFormat, weights: Weights, attention: str) -> Watch:
    """Round what the module `attention` (its name in the checkpoint) caches, as `number_format` says.

    Raises InputError for a scale that is none.
    """
    if number_format.per == "token":
        return lambda keys, values: (_per_token(keys, number_format), _per_token(values, number_format))
    k_scale, v_scale = (weights.scale(f"{attention}.{name}").view(-1, 1, 1) for name in ("k_scale", "v_scale"))
    grid = number_format.grid
    return lambda keys, values: (
        round_to_grid(keys, k_scale.to(keys.device), grid),
        round_to_grid(values, v_scale.to(values.device), grid),
    )


def _per_token(states: Tensor, number_format: CacheFormat) -> Tensor:
    scale = grid_scale(states.abs().amax(-1, keepdim=True), number_format.grid)
    return round_to_grid(states, scale, number_format.grid)
