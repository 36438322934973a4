"""Families whose feed-forward networks are experts, of which each token visits a few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compress.formats.errors import InputError
from compress.formats.gguf.families.dense import GRANITE_SETTINGS
from compress.formats.gguf.families.parts import FFN_NORM, HEAD_NORMS, ROW_NORMS, TOP, attention, feed_forward
from compress.formats.gguf.names import EXPERT, Architecture, Setting, Slot

_USED = Setting("expert_used_count", "num_experts_per_tok", whole=True)
_COUNT = Setting("expert_count", "num_experts", whole=True)
_INNER = Setting("expert_feed_forward_length", "moe_intermediate_size", whole=True)
_LOCAL = {"num_experts": "num_local_experts"}


def _router(name: str = "mlp.gate") -> Slot:
    return Slot("ffn_gate_inp", name, ("experts", "hidden"), exact=True)


def _apart(
    owner: str = "mlp", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[Slot, ...]:
    """Three matrices an expert, as files have had them from the start."""
    return (
        Slot("ffn_gate_exps", f"{owner}.experts.{EXPERT}.{gate}", ("expert", "hidden")),
        Slot("ffn_up_exps", f"{owner}.experts.{EXPERT}.{up}", ("expert", "hidden")),
        Slot("ffn_down_exps", f"{owner}.experts.{EXPERT}.{down}", ("hidden", "expert")),
    )


_SHARED = (
    Slot("ffn_gate_inp_shexp", "mlp.shared_expert_gate", ("one", "hidden"), flat=True),
    Slot("ffn_gate_shexp", "mlp.shared_expert.gate_proj", ("shared", "hidden")),
    Slot("ffn_up_shexp", "mlp.shared_expert.up_proj", ("shared", "hidden")),
    Slot("ffn_down_shexp", "mlp.shared_expert.down_proj", ("hidden", "shared")),
)
_GRANITE = f"block_sparse_moe.experts.{EXPERT}"
_GRANITE_EXPERTS = (
    Slot("ffn_gate_exps", f"{_GRANITE}.gate_up_proj", ("expert gate+up", "hidden"), part="first",
         stack="block_sparse_moe.input_linear.weight"),
    Slot("ffn_up_exps", f"{_GRANITE}.gate_up_proj", ("expert gate+up", "hidden"), part="last",
         stack="block_sparse_moe.input_linear.weight"),
    Slot("ffn_down_exps", f"{_GRANITE}.down_proj", ("hidden", "expert"), stack="block_sparse_moe.output_linear.weight"),
)  # fmt: skip
_OSS = f"mlp.experts.{EXPERT}"
_OSS_BLOCK = (
    *attention("always", "always"),
    Slot("attn_sinks", "self_attn.sinks", ("heads",), bare=True),
    Slot("post_attention_norm", "post_attention_layernorm", ("hidden",)),
    Slot("ffn_gate_inp", "mlp.router", ("experts", "hidden"), "always", exact=True),
    Slot("ffn_gate_exps", f"{_OSS}.gate_up_proj", ("expert gate+up", "hidden"), "always", part="even",
         stack="mlp.experts.gate_up_proj", transposed=True),
    Slot("ffn_up_exps", f"{_OSS}.gate_up_proj", ("expert gate+up", "hidden"), "always", part="odd",
         stack="mlp.experts.gate_up_proj", transposed=True),
    Slot("ffn_down_exps", f"{_OSS}.down_proj", ("hidden", "expert"), "always", stack="mlp.experts.down_proj",
         transposed=True),
)  # fmt: skip

_FOUR = f"feed_forward.experts.{EXPERT}"
_LLAMA4_BLOCK = (
    *attention(),
    FFN_NORM,
    *(replace(slot, hf=slot.hf.replace("mlp.", "feed_forward."), sparse=False) for slot in feed_forward()),
    replace(_router("feed_forward.router"), sparse=True),
    Slot("ffn_gate_exps", f"{_FOUR}.gate_up_proj", ("expert gate+up", "hidden"), part="first",
         stack="feed_forward.experts.gate_up_proj", transposed=True, sparse=True),
    Slot("ffn_up_exps", f"{_FOUR}.gate_up_proj", ("expert gate+up", "hidden"), part="last",
         stack="feed_forward.experts.gate_up_proj", transposed=True, sparse=True),
    Slot("ffn_down_exps", f"{_FOUR}.down_proj", ("hidden", "expert"), stack="feed_forward.experts.down_proj",
         transposed=True, sparse=True),
    Slot("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj", ("shared", "hidden"), sparse=True),
    Slot("ffn_up_shexp", "feed_forward.shared_expert.up_proj", ("shared", "hidden"), sparse=True),
    Slot("ffn_down_shexp", "feed_forward.shared_expert.down_proj", ("hidden", "shared"), sparse=True),
)  # fmt: skip
_LARGE = 128
"""The experts of Llama 4 Maverick: by their number llama.cpp knows that queries and keys are not normed."""
_PERIOD = "interleave_moe_layer_step"


def _llama4(config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 4 calls the inner size of an expert what others call that of a layer without."""
    if "moe_intermediate_size" in config:
        return {}
    expert, period = config.get("intermediate_size"), config.get(_PERIOD) or 1
    if type(period) is not int or period < 1:
        raise InputError(f"config.json: {_PERIOD} is {period!r}, not a number of layers")
    sizes = {"moe_intermediate_size": expert, "shared_expert_intermediate_size": expert}
    sizes["intermediate_size"] = config.get("intermediate_size_mlp") or expert
    tuned = bool(config.get("attn_temperature_tuning", True))  # 4 in Maverick's file
    return {**sizes, _PERIOD: period, "attn_temperature_tuning": tuned}


def _llama4_own(config: Mapping[str, Any]) -> dict[str, Any]:
    sparse = range(config[_PERIOD] - 1, config["num_hidden_layers"], config[_PERIOD])
    return {
        "intermediate_size": config["moe_intermediate_size"],
        "intermediate_size_mlp": config["intermediate_size"],
        "moe_intermediate_size": None,
        "moe_layers": list(sparse),
        "use_qk_norm": config["num_experts"] != _LARGE,
    }


FAMILIES = (
    Architecture(
        "llama",
        "mixtral",
        "MixtralForCausalLM",
        TOP,
        (
            *attention(rows="rope"),
            FFN_NORM,
            _router("block_sparse_moe.gate"),
            *_apart("block_sparse_moe", "w1", "w3", "w2"),
        ),
        settings=(_COUNT, _USED),
        renamed=_LOCAL,
        scaled=True,
    ),
    Architecture(
        "qwen2moe",
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        TOP,
        (*attention("always"), FFN_NORM, _router(), *_apart(), *_SHARED),
        fixed={
            "use_sliding_window": False, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
            "qkv_bias": True,
        },
        settings=(
            _COUNT,
            _USED,
            _INNER,
            Setting("expert_shared_feed_forward_length", "shared_expert_intermediate_size", whole=True),
        ),
    ),
    Architecture(
        "qwen3moe",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        TOP,
        (*attention(), FFN_NORM, _router(), *_apart(), *HEAD_NORMS),
        fixed={
            "use_sliding_window": False, "attention_bias": False, "norm_topk_prob": True, "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        settings=(_COUNT, _USED, _INNER),
        renamed=_LOCAL,
        scaled=True,
    ),
    Architecture(
        "olmoe",
        "olmoe",
        "OlmoeForCausalLM",
        TOP,
        (*attention(), FFN_NORM, _router(), *_apart(), *ROW_NORMS),
        fixed={"attention_bias": False, "norm_topk_prob": False, "clip_qkv": None},
        settings=(_COUNT, _USED),
    ),
    Architecture(
        "granitemoe",
        "granitemoe",
        "GraniteMoeForCausalLM",
        TOP,
        (*attention(rows="rope"), FFN_NORM, _router("block_sparse_moe.router.layer"), *_GRANITE_EXPERTS),
        fixed={"attention_bias": False},
        settings=(*GRANITE_SETTINGS, _COUNT, _USED),
        renamed=_LOCAL,
        freq_factors=True,
    ),
    Architecture(
        "gpt-oss",
        "gpt_oss",
        "GptOssForCausalLM",
        TOP,
        _OSS_BLOCK,
        fixed={"attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        settings=(
            _COUNT,
            _USED,
            Setting("expert_feed_forward_length", "intermediate_size", whole=True),
            Setting("attention.sliding_window", "sliding_window", whole=True),
        ),
        renamed=_LOCAL,
        window=2,
        truncate=False,
    ),
    Architecture(
        "llama4",
        "llama4_text",
        "Llama4ForCausalLM",
        TOP,
        _LLAMA4_BLOCK,
        fixed={
            "attention_bias": False, "attention_chunk_size": 8192, "attn_temperature_tuning": True, "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        settings=(_COUNT, _USED, _INNER, Setting(_PERIOD, _PERIOD, whole=True, usual=1)),
        renamed=_LOCAL,
        derived=_llama4,
        own=_llama4_own,
        no_rope=4,
        chunked=True,
        sparse=_PERIOD,
        freq_factors=True,
    ),
)  # fmt: skip
