"""The table of sizes: every precision, and the cache by context and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from compress.cli.views.memory import memory
from compress.formats.base import ModelSpec, TensorSpec
from compress.recipes.jobs.memory import Memory, memory_of

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "hidden_size": 4096, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.fixture
def found() -> Memory:
    """2³⁰ parameters, heads as in an 8B Llama: 128 KiB of FP16 cache per token."""
    spec = ModelSpec(CONFIG, {"model.embed_tokens.weight": TensorSpec((1 << 15, 1 << 15), "bfloat16")})
    return memory_of("tiny", spec, 1 << 31)


def test_every_precision_has_a_line(found: Memory, shown: Callable[..., list[str]]) -> None:
    lines = shown(memory(found))
    assert lines[0] == "tiny: LlamaForCausalLM, 1,073,741,824 parameters, 2.15 GB stored"
    assert "FP16/BF16 16 2.00 GiB 2.40 GiB 8.00 GiB" in lines
    assert "INT4 4 512 MiB 614 MiB 2.00 GiB" in lines


def test_the_cache_is_shown_by_context_and_batch(found: Memory, shown: Callable[..., list[str]]) -> None:
    lines = shown(memory(found))
    (head,) = (line for line in lines if line.startswith("Key-value cache"))
    assert head.startswith("Key-value cache: GQA, 32 heads on 8 key-value heads of 128; per token FP32 256 KiB")
    assert "context, FP16 batch 1 batch 8 batch 32" in lines
    assert "2,048 tokens 256 MiB 2.00 GiB 8.00 GiB" in lines
    assert "8,192 tokens 1.00 GiB 8.00 GiB 32.0 GiB" in lines
    assert "GQA 8 128 KiB 25 %" in lines and "MQA 1 16.0 KiB 3 %" in lines


def test_without_a_cache_it_is_said_why(found: Memory, shown: Callable[..., list[str]]) -> None:
    lines = shown(memory(found.model_copy(update={"cache": None, "notes": ("no cache table",)})))
    assert lines[-1] == "note: no cache table" and not any("Key-value" in line for line in lines)
