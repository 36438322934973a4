"""The factors of Llama 3's rotary embedding, against those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.metadata import Metadata, real, uint
from compress.formats.gguf.names import Architecture
from compress.formats.gguf.rope import LONG, SHORT, Rope, llama3_factors, llama3_rope, long_attention, rope_of
from compress.formats.gguf.rope_metadata import read_rope_keys, write_rope


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


LONG_ROPE = {"original_max_position_embeddings": 64.0}


def test_longrope_multiplies_as_transformers_does() -> None:
    scaling = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    config = AutoConfig.for_model(
        "phi3", hidden_size=32, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
        original_max_position_embeddings=64,
        rope_parameters={**scaling, "long_factor": [2.0] * 4, "short_factor": [1.0] * 4},
    )  # fmt: skip
    _, expected = ROPE_INIT_FUNCTIONS["longrope"](config, device="cpu")
    assert long_attention(256, LONG_ROPE) == pytest.approx(expected)
    assert rope_of(config.to_dict()).attention == pytest.approx(expected)
    assert long_attention(64, LONG_ROPE) == 1.0


def test_longrope_goes_through_metadata_and_tensors() -> None:
    family = Architecture("phi3", "phi3", "Phi3ForCausalLM", (), (), partial_rope=1.0, long_rope=True)
    rope = Rope(kind="longrope", scaling=LONG_ROPE, long=(2.0, 3.0), short=(1.0, 1.5), attention=1.25)
    metadata = {f"phi3.{key}": value for key, value in write_rope(family, rope, 4).items()}
    config = read_rope_keys(family, Metadata(metadata), {"max_position_embeddings": 256}, 4, rope.tensors(4))
    again = rope_of({**config, "max_position_embeddings": 256})
    assert (again.long, again.short, again.attention) == (rope.long, rope.short, rope.attention)
    with pytest.raises(RefusedError, match="LongRoPE"):
        write_rope(family, rope, 8)
    with pytest.raises(InputError, match=LONG):
        read_rope_keys(family, Metadata(metadata), {}, 4, {LONG: rope.tensors(4)[LONG]})
    with pytest.raises(InputError, match=SHORT):
        read_rope_keys(family, Metadata({"phi3.rope.freq_base": real(1.0)}), {}, 8, {SHORT: rope.tensors(4)[SHORT]})


@pytest.mark.parametrize("trained", [1, 0.5])
def test_longrope_of_no_context_is_an_input_error(trained: float) -> None:
    """The factor divides by the logarithm of the old context."""
    scaling = {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}
    config = {"rope_scaling": {**scaling, "original_max_position_embeddings": trained}, "max_position_embeddings": 8}
    with pytest.raises(InputError, match="trained on"):
        rope_of(config)


@pytest.mark.parametrize("partial", [0.01, 0.2, 1.5])
def test_a_part_of_a_head_that_is_no_pairs_is_an_input_error(partial: float) -> None:
    family = Architecture("phi3", "phi3", "Phi3ForCausalLM", (), (), partial_rope=1.0)
    with pytest.raises(InputError, match="even number of dimensions"):
        write_rope(family, Rope(partial=partial), 16)
    with pytest.raises(InputError, match="dimension_count"):
        read_rope_keys(family, Metadata({"phi3.rope.dimension_count": uint(3)}), {}, 16, {})
