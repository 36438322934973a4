"""Bytes of caches, against the examples of the course."""

from __future__ import annotations

from typing import Any

import pytest

from compress.recipes.figures.cache import cache_bytes, cache_of

GiB = 1024**3
LLAMA3_8B: dict[str, Any] = {
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096,
}  # fmt: skip


def test_the_cache_examples_of_the_course() -> None:
    # LLaMA-7B, 2048 tokens, FP16: 2 · 32 · 2048 · 4096 · 2 bytes.
    assert cache_bytes(layers=32, kv_heads=32, head_dim=128, width=2, tokens=2048) == GiB
    # KVCache(max_batch_size=32, max_seq_len=2048, num_layers=32, num_heads=32, head_dim=128), float16.
    assert cache_bytes(32, 32, 128, 2, tokens=2048, batch=32) == 32 * GiB
    # One layer's bytes per token in FP32: MHA 32 heads, MQA, GQA with 8 heads.
    assert [cache_bytes(1, heads, 128, 4) for heads in (32, 1, 8)] == [32768, 1024, 8192]


@pytest.mark.parametrize("width", [2, 1, 34 / 32])
def test_what_is_held_goes_by_tokens_and_width(width: float) -> None:
    cache, note = cache_of(LLAMA3_8B)
    assert cache is not None and not note
    assert cache.held(4 * 32768, width) == 131_072 * (4 * 32768) * width / 2  # 128 KiB a token in FP16
