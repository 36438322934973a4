"""Sizes in a config.json that no model has: beyond them, a configuration only serves to exhaust time and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.formats.errors import InputError

LIMITS: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 1 << 10),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 1 << 14),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 1 << 14),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 1 << 17),
    "head_dim": 1 << 14,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), 1 << 20),
    "vocab_size": 1 << 22,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), (1 << 31) - 1),
}
"""Key of config.json → the largest value; 1 is the smallest."""


def check_limits(config: Mapping[str, Any], where: object) -> None:
    """Raise InputError, naming `where` and the key, for a size at any depth that is no number within its limit.

    null stands for the architecture's default.
    """
    for key, value in _sizes(config):
        if type(value) is not int or not 1 <= value <= LIMITS[key]:
            raise InputError(f"{where}: {key} is {str(value)[:40]}; it must be a whole number of 1 to {LIMITS[key]:,}")


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif key in LIMITS and value is not None:
            yield key, value
