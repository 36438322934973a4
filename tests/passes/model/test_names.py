"""Which tensor fills which parameter: the names of today, of base models, and of experts that are kept apart."""

from __future__ import annotations

import torch
from transformers import AutoConfig

from compress.passes.model.blank import empty_model
from compress.passes.model.names import tensor_names

SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
         "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip


def names_of(family: str, stored: list[str], **sizes: int) -> dict[str, str]:
    return tensor_names(empty_model(AutoConfig.for_model(family, **{**SMALL, **sizes}), stored, torch.float32), stored)


def test_todays_names_are_themselves() -> None:
    stored = ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"]
    assert names_of("llama", stored) == {name: name for name in stored}


def test_a_base_models_names_lack_the_prefix_and_the_heads_own_does_not() -> None:
    found = names_of("gpt2", ["h.0.mlp.c_fc.weight", "wte.weight", "lm_head.weight"], n_embd=16, n_head=2)
    assert found == {
        "transformer.h.0.mlp.c_fc.weight": "h.0.mlp.c_fc.weight",
        "transformer.wte.weight": "wte.weight",
        "lm_head.weight": "lm_head.weight",
    }


def test_experts_kept_apart_are_parts_of_a_product() -> None:
    stored = [f"model.layers.0.block_sparse_moe.experts.1.{name}.weight" for name in ("w1", "w2", "w3")]
    found = names_of("mixtral", stored, num_local_experts=2)
    assert {name.partition("experts.")[2]: stored for name, stored in found.items()} == {
        "1.gate_up_proj.0.weight": stored[0],
        "1.down_proj.0.weight": stored[1],
        "1.gate_up_proj.1.weight": stored[2],
    }
