"""Families before Llama: layer norms, biases, query, key and value in one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.formats.gguf.names import Architecture, Slot

_NEOX_TOP = (
    Slot("token_embd", "gpt_neox.embed_in", ("vocab", "hidden")),
    Slot("output_norm", "gpt_neox.final_layer_norm", ("hidden",), "always"),
    Slot("output", "embed_out", ("vocab", "hidden"), also="lm_head"),
)
_NEOX_BLOCK = (
    Slot("attn_norm", "input_layernorm", ("hidden",), "always"),
    Slot("attn_qkv", "attention.query_key_value", ("query+key+value", "hidden"), "always", "fused"),
    Slot("attn_output", "attention.dense", ("hidden", "query"), "always"),
    Slot("ffn_norm", "post_attention_layernorm", ("hidden",), "always"),
    Slot("ffn_up", "mlp.dense_h_to_4h", ("inner", "hidden"), "always"),
    Slot("ffn_down", "mlp.dense_4h_to_h", ("hidden", "inner"), "always"),
)
_GPT2_TOP = (
    Slot("token_embd", "transformer.wte", ("vocab", "hidden")),
    Slot("position_embd", "transformer.wpe", ("context", "hidden"), exact=True),
    Slot("output_norm", "transformer.ln_f", ("hidden",), "always"),
    Slot("output", "lm_head", ("vocab", "hidden"), untied=True),
)
_GPT2_BLOCK = (
    Slot("attn_norm", "ln_1", ("hidden",), "always"),
    Slot("attn_qkv", "attn.c_attn", ("query+key+value", "hidden"), "always", transposed=True),
    Slot("attn_output", "attn.c_proj", ("hidden", "query"), "always", transposed=True),
    Slot("ffn_norm", "ln_2", ("hidden",), "always"),
    Slot("ffn_up", "mlp.c_fc", ("inner", "hidden"), "always", transposed=True),
    Slot("ffn_down", "mlp.c_proj", ("hidden", "inner"), "always", transposed=True),
)
_FALCON_TOP = (
    Slot("token_embd", "transformer.word_embeddings", ("vocab", "hidden")),
    Slot("output_norm", "transformer.ln_f", ("hidden",), "always"),
    Slot("output", "lm_head", ("vocab", "hidden"), untied=True),
)
_FALCON_BLOCK = (
    Slot("attn_norm", "input_layernorm", ("hidden",), "always", when="!two_norms"),
    Slot("attn_norm", "ln_mlp", ("hidden",), "always", when="two_norms"),
    Slot("attn_norm_2", "ln_attn", ("hidden",), "always", when="two_norms"),
    Slot("attn_qkv", "self_attention.query_key_value", ("query+key+value", "hidden"), rows="fused"),
    Slot("attn_output", "self_attention.dense", ("hidden", "query")),
    Slot("ffn_up", "mlp.dense_h_to_4h", ("inner", "hidden")),
    Slot("ffn_down", "mlp.dense_4h_to_h", ("hidden", "inner")),
)


def _four_times(hidden: object) -> int | None:
    """The usual inner size; None of what is no size, which is refused where sizes are read."""
    return 4 * hidden if type(hidden) is int else None


def _falcon(config: Mapping[str, Any]) -> dict[str, Any]:
    """Falcon says in three flags how many heads have keys, and how many norms a layer has (modeling_falcon.py)."""
    if "new_decoder_architecture" not in config:
        return {}
    new = bool(config["new_decoder_architecture"])
    shared = config.get("num_kv_heads") if new else 1 if config.get("multi_query", True) else None
    two = new and config.get("num_ln_in_parallel_attn") in (None, 2)
    return {
        "max_position_embeddings": config.get("max_position_embeddings") or 2048,
        "intermediate_size": config.get("ffn_hidden_size") or _four_times(config.get("hidden_size")),
        "num_key_value_heads": shared or config.get("num_attention_heads"),
        "two_norms": two,
    }


def _falcon_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    kv, heads = config["num_key_value_heads"], config["num_attention_heads"]
    new = bool(config["two_norms"]) or kv not in (1, heads)
    norms = (2 if config["two_norms"] else 1) if new else None
    return {
        "new_decoder_architecture": new,
        "num_kv_heads": kv if new else heads,
        "num_ln_in_parallel_attn": norms,
        "multi_query": new or kv == 1,
        "two_norms": None,
        "num_key_value_heads": None,
    }


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"intermediate_size": config.get("n_inner") or _four_times(config.get("hidden_size"))}


FAMILIES = (
    Architecture(
        "gptneox",
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _NEOX_TOP,
        _NEOX_BLOCK,
        block_prefix="gpt_neox.layers",
        fixed={"attention_bias": True, "tie_word_embeddings": False},
        acts=("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        rms=False,
        epsilon="layer_norm_eps",
        grouped=False,
        sized=False,
        parallel=True,
        partial_rope=0.25,
        buffers=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
    ),
    Architecture(
        "gpt2",
        "gpt2",
        "GPT2LMHeadModel",
        _GPT2_TOP,
        _GPT2_BLOCK,
        block_prefix="transformer.h",
        fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        renamed={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
            "hidden_act": "activation_function",
        },
        derived=_gpt2,
        acts=("gelu_new", "gelu", "gelu_pytorch_tanh"),
        rms=False,
        epsilon="layer_norm_epsilon",
        grouped=False,
        sized=False,
        rotates=False,
        buffers=(".attn.bias", ".attn.masked_bias"),
    ),
    Architecture(
        "falcon",
        "falcon",
        "FalconForCausalLM",
        _FALCON_TOP,
        _FALCON_BLOCK,
        block_prefix="transformer.h",
        fixed={"alibi": False, "bias": False, "parallel_attn": True},
        renamed={"hidden_act": "activation", "intermediate_size": "ffn_hidden_size"},
        derived=_falcon,
        own=_falcon_flags,
        acts=("gelu", "gelu_new"),
        rms=False,
        epsilon="layer_norm_epsilon",
        sized=False,
    ),
)
