"""A tiny model of every family that GGUF and transformers have in common, under what distinguishes it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
OLD_SIZES: dict[str, Any] = {
    "vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
FALCON_SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 128,
    "long_factor": [1.0 + i for i in range(4)], "short_factor": [1.0 + i / 8 for i in range(4)],
    "partial_rotary_factor": 0.5,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
# Windows are shorter than the rows that tests ask with; heads are of odd sizes where the family has them.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"head_dim": 32, "sliding_window": None},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32},
    "gemma3_text": {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32, "num_hidden_layers": 7},
    "phi3": {},
    "phi3, longrope": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 128, "rope_parameters": _LONG},
    "olmo2": {},
    "smollm3": {"num_hidden_layers": 4},
    "starcoder2": {"sliding_window": None, "initializer_range": 0.02},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2,
                "logits_scaling": 0.5},
    "gpt2": {},
    "falcon": {"new_decoder_architecture": False},
    "falcon, no heads shared": {"new_decoder_architecture": False, "multi_query": False},
    "falcon, new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, new, one norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0, "sliding_window": 8, "num_hidden_layers": 5},
    "glm4": {"head_dim": 32},
    "mixtral": {"num_local_experts": 4, "head_dim": 16},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                  "shared_expert_intermediate_size": 64},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32,
                  "norm_topk_prob": True},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.3,
                   "logits_scaling": 2.0},
    # Every second layer has experts, the fourth no positions.
    "llama4_text": {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 64,
                    "intermediate_size_mlp": 128, "interleave_moe_layer_step": 2, "head_dim": 32,
                    "num_hidden_layers": 4},
    # YaRN ends on a whole dimension here: llama.cpp rounds to it, and transformers does not.
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "sliding_window": 8,
                "rope_parameters": {**_YARN, "rope_theta": 10770.0, "truncate": False}},
}  # fmt: skip


def config_of(family: str) -> PreTrainedConfig:
    """The configuration of the tiny model of a family."""
    kind = family.partition(",")[0]
    sizes = {"gpt2": OLD_SIZES, "falcon": FALCON_SIZES}.get(kind, SIZES)
    return AutoConfig.for_model(kind, **{**sizes, **FAMILIES[family]})


def lively(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model whose logits differ, with biases and norms that are not the usual ones and zeros."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2 * (64 / config.hidden_size) ** 0.5)
    return model.eval()
