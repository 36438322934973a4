"""The factors of Llama 3's rotary embedding, against those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compress.formats.errors import InputError
from compress.formats.gguf.rope import llama3_factors, llama3_rope, rope_of


def test_llama_3_factors_are_those_of_transformers(make: Callable[[str], Path]) -> None:
    config = AutoConfig.from_pretrained(make("llama3"))
    width = config.head_dim
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500000.0 ** (torch.arange(0, width, 2).float() / width)
    rope = rope_of(config.to_dict())
    factors = llama3_factors(rope, width)
    torch.testing.assert_close(plain / factors, scaled, rtol=1e-5, atol=0)
    assert llama3_rope(500000.0, factors) == rope
    assert llama3_rope(500000.0, torch.ones(width // 2)).kind == "default"
    with pytest.raises(InputError, match="rope_freqs"):
        llama3_rope(500000.0, factors.flip(0))
