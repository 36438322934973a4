"""Positions that a model looks up in a table end there: transformers' own forward is the judge."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compress.formats.errors import RefusedError
from compress.passes.model.positions import Positions, positions_of

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 48, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
MORE: dict[str, dict[str, object]] = {
    "gpt2": {}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8, "n_ctx": 48}, "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_bigcode": {}, "llama": {}, "gpt_neox": {}, "qwen3": {}, "falcon": {"new_decoder_architecture": False},
}  # fmt: skip


@pytest.mark.parametrize("family", MORE)
def test_a_table_is_found_where_the_model_cannot_go_beyond(family: str) -> None:
    config = AutoConfig.for_model(family, **{**SIZES, **MORE[family]})
    model = AutoModelForCausalLM.from_config(config)
    found = positions_of(config, [model], model.get_input_embeddings())
    assert found is not None and found.count == 48
    with torch.no_grad():
        model(torch.zeros(1, 48, dtype=torch.int64))
        try:
            model(torch.zeros(1, 49, dtype=torch.int64))
            runs_on = True
        except (IndexError, RuntimeError):
            runs_on = False
    assert found.fixed == (not runs_on)


def test_a_model_without_a_limit_has_none() -> None:
    config = AutoConfig.for_model("bloom", vocab_size=96, hidden_size=32, n_layer=1, n_head=4)
    model = AutoModelForCausalLM.from_config(config)
    assert positions_of(config, [model], model.get_input_embeddings()) is None


def test_beyond_a_table_is_refused_beyond_a_habit_noted() -> None:
    notes: list[str] = []
    for length in (1, 48):
        Positions(48, True).refuse_beyond(length, "evaluate", notes.append)
    with pytest.raises(RefusedError, match="sequences of 49 tokens, and the model has 48 positions") as caught:
        Positions(48, True).refuse_beyond(49, "evaluate", notes.append)
    assert caught.value.hint == "say seq_len: 48, or less" and notes == []
    Positions(48, False).refuse_beyond(49, "evaluate", notes.append)
    assert len(notes) == 1 and "49" in notes[0] and "48" in notes[0]
