"""A key/value cache for transformers that really stores int8 or FP8 codes.

It grows as tokens come, and serves attention what the codes stand for. Keys and values lie as bytes
[batch, heads, tokens, width], and where scales are computed at run time, four bytes more hold the float32
scale of each token and head. So whatever transformers does with a cache (windows, beams, cropping) does to
codes what it does to numbers, unchanged. Attention may read the codes themselves (`read_codes`): transformers calls
what is registered in place of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError
from compress.kernels.numbers.activations import CacheFormat, Grid, grid_codes, grid_scale
from compress.kernels.product.attend_codes import Coded, attend_codes
from compress.passes.model.names import tensor_names
from compress.passes.model.weights import dense

_SCALE_BYTES = 4
_ATTENTION = "codes"
"""What transformers calls the attention that reads codes."""
_OTHERWISE = ("softcap", "s_aux", "position_bias")
"""Arguments that make another softmax of it."""


@dataclass(frozen=True)
class Codec:
    """States [batch, heads, tokens, width] ↔ bytes. `scale` [1] or [heads] is static; None: per token and head."""

    grid: Grid
    scale: Tensor | None = None

    def encode(self, states: Tensor) -> Tensor:
        """uint8 [batch, heads, tokens, width], and 4 more in width where the scale goes along."""
        if self.scale is not None:
            return grid_codes(states, self._static(states), self.grid)
        scale = grid_scale(states.abs().amax(-1, keepdim=True), self.grid)
        return torch.cat([grid_codes(states, scale, self.grid), scale.view(torch.uint8)], -1)

    def coded(self, stored: Tensor) -> Coded:
        """Codes and scales of what `encode` made of states."""
        if self.scale is not None:
            return Coded(stored, self._static(stored)[..., 0].expand(stored.shape[:3]), self.grid)
        scale = stored[..., -_SCALE_BYTES:].clone().view(torch.float32)
        return Coded(stored[..., :-_SCALE_BYTES], scale[..., 0], self.grid)

    def decode(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """What `encode` made of states, as `dtype`."""
        return self.coded(stored).values().to(dtype)

    def _static(self, states: Tensor) -> Tensor:
        assert self.scale is not None
        return self.scale.to(states.device).view(-1, 1, 1)


class _Encoded:
    """A layer of transformers' cache, holding bytes: what goes in is encoded, what comes out decoded, unless `read`."""

    codecs: tuple[Codec, Codec]
    read: bool = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor | Coded, Tensor | Coded]:
        keys, values = self.codecs
        stored: tuple[Tensor, Tensor] = super().update(  # type: ignore[misc]
            keys.encode(key_states), values.encode(value_states), *args, **kwargs
        )
        if self.read:
            return keys.coded(stored[0]), values.coded(stored[1])
        return keys.decode(stored[0], key_states.dtype), values.decode(stored[1], value_states.dtype)


class _EncodedLayer(_Encoded, DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Every token is kept."""


class _EncodedWindow(_Encoded, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """The tokens of a sliding window are kept."""


class QuantizedCache(DynamicCache):  # type: ignore[misc]
    """A cache for a model of `config` that holds codes; `scales` are the static ones of each layer (keys, values).

    Raises RefusedError for a model that keeps something else than keys and values.
    """

    def __init__(
        self, config: PreTrainedConfig, number_format: CacheFormat, scales: Mapping[int, tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__(config=config)
        for index, plain in enumerate(self.layers):
            layer: _EncodedLayer | _EncodedWindow
            if type(plain) is DynamicLayer:
                layer = _EncodedLayer()
            elif type(plain) is DynamicSlidingWindowLayer:
                layer = _EncodedWindow(plain.sliding_window)
            else:
                raise RefusedError(
                    f"layer {index} keeps a {type(plain).__name__}, not keys and values",
                    "run it without a quantized cache",
                )
            static = scales.get(index, (None, None))
            layer.codecs = (Codec(number_format.grid, static[0]), Codec(number_format.grid, static[1]))
            self.layers[index] = layer

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values occupy."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.is_initialized)


def cache_for(model: PreTrainedModel, checkpoint: Checkpoint, grid: Grid | None) -> QuantizedCache | None:
    """An empty cache for `model`: on `grid` per token and head if given, else as `checkpoint` says; None if plain.

    Raises RefusedError for a model whose cache it cannot be, InputError for a scale that is none.
    """
    number_format = checkpoint.spec.kv_cache if grid is None else CacheFormat(grid, "token")
    if number_format is None:
        return None
    scales = {}
    if number_format.per != "token":
        weights, stored = dense(checkpoint), tensor_names(model, checkpoint.spec.tensors)
        for name, module in model.named_modules():
            if f"{name}.k_scale" in stored and f"{name}.v_scale" in stored:
                k_scale, v_scale = (weights.scale(stored[f"{name}.{side}_scale"]) for side in ("k", "v"))
                scales[int(module.layer_idx)] = (k_scale, v_scale)
    return QuantizedCache(model.config, number_format, scales)


def read_codes(model: PreTrainedModel, cache: QuantizedCache) -> None:
    """Let the attention of `model` read the codes of `cache`, with one new token at a time; if it is torch's own."""
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return
    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    model.set_attn_implementation(_ATTENTION)
    for layer in cache.layers:
        layer.read = True


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor | Coded,
    value: Tensor | Coded,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention: `query` [batch, heads, tokens, width] → [batch, tokens, heads, width]."""
    batch, _, tokens, width = query.shape
    plain = all(kwargs.get(name) is None for name in _OTHERWISE)
    if isinstance(key, Coded) and isinstance(value, Coded) and tokens == 1 and plain:
        seen = None if attention_mask is None else attention_mask[:, 0, 0].expand(batch, -1)
        scaling = width**-0.5 if scaling is None else scaling
        return attend_codes(query[:, :, 0], key, value, scaling, seen).unsqueeze(1), None
    key, value = (each.values().to(query.dtype) if isinstance(each, Coded) else each for each in (key, value))
    found: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return found
