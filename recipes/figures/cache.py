"""The key-value cache of a model, from its configuration alone.

cache per token  2 · layers · kv_heads · head_dim · bytes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from compress.formats.errors import InputError

CACHE_PRECISIONS = {"FP32": 4, "FP16/BF16": 2, "INT8/FP8": 1}
BATCHES = (1, 8, 32)
CONTEXTS = (2048, 8192, 32768, 131072)

# The names that architectures have for one thing.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_CONTEXT = ("max_position_embeddings", "n_positions")


class Figures(BaseModel):
    """Figures that stay."""

    model_config = ConfigDict(frozen=True)


class Sharing(Figures):
    """The cache of one way to share key-value heads: bytes per token in FP16, and relative to MHA."""

    name: str
    kv_heads: int
    bytes_per_token: int
    ratio: float


class CacheSize(Figures):
    """Bytes of the FP16 cache for `batch` sequences of `context` tokens."""

    batch: int
    context: int
    nbytes: int


class Cache(Figures):
    """The key-value cache of a model whose every layer keeps every token."""

    kind: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    bytes_per_token: dict[str, int]
    sharing: tuple[Sharing, ...]
    sizes: tuple[CacheSize, ...]

    def held(self, tokens: int, width: float) -> int:
        """Bytes for so many tokens in all, each number in `width` bytes."""
        return round(cache_bytes(self.layers, self.kv_heads, self.head_dim, 1, tokens) * width)


def cache_bytes(layers: int, kv_heads: int, head_dim: int, width: int, tokens: int = 1, batch: int = 1) -> int:
    """Bytes of a key-value cache with `width` bytes per element; the 2 is for keys and values."""
    return 2 * layers * kv_heads * head_dim * width * tokens * batch


def cache_of(config: Mapping[str, Any]) -> tuple[Cache | None, str]:
    """The cache's sizes, and what the reader should know about them; None where the formula does not hold.

    Raises InputError for impossible values.
    """
    config = config.get("text_config") or config
    if config.get("kv_lora_rank"):
        return None, "the cache holds latents (MLA), not heads: no cache table"
    layers, heads, width = (_whole(config, names) for names in (_LAYERS, _HEADS, _WIDTH))
    if layers is None or heads is None or (width is None and "head_dim" not in config):
        return None, "config.json does not say how many heads there are: no cache table"
    head_dim = _whole(config, ("head_dim",)) or (width or 0) // heads
    kv_heads = _whole(config, _KV_HEADS) or heads
    longest = _whole(config, _CONTEXT) or CONTEXTS[-1]
    sizes = tuple(
        CacheSize(batch=batch, context=context, nbytes=cache_bytes(layers, kv_heads, head_dim, 2, context, batch))
        for context in _contexts(longest)
        for batch in BATCHES
    )
    cache = Cache(
        kind=_kind(heads, kv_heads),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        bytes_per_token={
            name: cache_bytes(layers, kv_heads, head_dim, size) for name, size in CACHE_PRECISIONS.items()
        },
        sharing=_sharing(layers, heads, kv_heads, head_dim),
        sizes=sizes,
    )
    kinds = config.get("layer_types") or []
    bounded = isinstance(kinds, list) and any(kind != "full_attention" for kind in kinds)
    return cache, "some layers keep less than every token: the cache is at most this large" if bounded else ""


def _kind(heads: int, kv_heads: int) -> str:
    return "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"


def _sharing(layers: int, heads: int, kv_heads: int, head_dim: int) -> tuple[Sharing, ...]:
    """MHA, this model, and MQA side by side."""
    counts = dict.fromkeys((heads, kv_heads, 1))
    return tuple(
        Sharing(
            name=_kind(heads, count),
            kv_heads=count,
            bytes_per_token=cache_bytes(layers, count, head_dim, 2),
            ratio=count / heads,
        )
        for count in counts
    )


def _contexts(longest: int) -> tuple[int, ...]:
    return (*(context for context in CONTEXTS if context < longest), longest)


def _whole(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of `names` that `config` has, as a positive whole number."""
    value = next((config[name] for name in names if config.get(name) is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
        raise InputError(f"config.json: {names[0]} is {value!r}; it must be a positive whole number")
    return value
