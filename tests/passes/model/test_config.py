"""The boundary to transformers: what a stranger's config.json may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.formats.errors import InputError
from compress.passes.model.config import config_of

HERE = Path("here")
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}  # fmt: skip


def test_a_config_becomes_transformers_own() -> None:
    config = config_of(LLAMA, HERE)
    assert (config.model_type, config.hidden_size, config.num_key_value_heads) == ("llama", 64, 2)
    assert config.tie_word_embeddings is True
    assert config.rope_parameters["rope_theta"] == 10000.0


@pytest.mark.parametrize("hostile", [
    {"auto_map": {"AutoConfig": "evil.Config"}}, {"trust_remote_code": True},
    {"_attn_implementation_internal": "evil/kernel"}, {"attn_implementation": "evil/kernel"},
    {"quantization_config": {"quant_method": "gptq"}},
])  # fmt: skip
def test_what_names_code_is_dropped(hostile: dict[str, Any]) -> None:
    (key,) = hostile
    config = config_of({**LLAMA, **hostile}, HERE)
    assert "evil" not in str(vars(config))
    assert key == "_attn_implementation_internal" or not getattr(config, key, None)


@pytest.mark.parametrize("change", [
    {"num_hidden_layers": 10**8}, {"num_hidden_layers": 0}, {"num_hidden_layers": "2"},
    {"num_hidden_layers": True},
    {"vocab_size": 2**40}, {"hidden_size": -1}, {"hidden_size": 1.5}, {"model_type": "none such"},
    {"model_type": None}, {"model_type": ["llama"]}, {"rope_scaling": "x"}, {"num_attention_heads": 0},
])  # fmt: skip
def test_values_that_no_model_has(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        config_of({**LLAMA, **change}, HERE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
keys = st.sampled_from([*LLAMA, "rope_scaling", "rope_parameters", "layer_types", "pad_token_id", "id2label", "dtype"])


@settings(max_examples=300, deadline=None)
@given(key=keys, value=json_values)
@pytest.mark.filterwarnings("ignore")
def test_any_value_is_a_config_or_an_input_error(key: str, value: Any) -> None:
    try:
        config_of({**LLAMA, key: value}, HERE)
    except InputError as error:
        assert "\n" not in str(error)
