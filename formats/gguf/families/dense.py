"""Families with one feed-forward network a layer, in the way of Llama."""

from __future__ import annotations

from dataclasses import replace

from compress.formats.gguf.families.parts import (
    FFN_NORM,
    FUSED_FEED_FORWARD,
    HEAD_NORMS,
    LAYER_NORMED_TOP,
    ROW_NORMS,
    TOP,
    attention,
    block,
    feed_forward,
)
from compress.formats.gguf.names import Architecture, Setting, Slot

_AFTER = (
    Slot("post_attention_norm", "post_attention_layernorm", ("hidden",)),
    Slot("post_ffw_norm", "post_feedforward_layernorm", ("hidden",)),
)


def _gemma(slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
    """Gemma's norms multiply by 1 + w; llama.cpp's by what is stored."""
    return tuple(replace(slot, plus=1.0) if len(slot.axes) == 1 else slot for slot in slots)


_GEMMA2_NORM = Slot("ffn_norm", "pre_feedforward_layernorm", ("hidden",))
_GEMMA2_BLOCK = _gemma((*attention(), *_AFTER, _GEMMA2_NORM, *feed_forward()))
_GEMMA_ACTS = ("gelu_pytorch_tanh",)
_WINDOW = Setting("attention.sliding_window", "sliding_window", whole=True)
_COHERE_BLOCK = (*attention("attention_bias", "attention_bias"), *feed_forward())
_LOGIT_SCALE = Setting("logit_scale", "logit_scale")
GRANITE_SETTINGS = (
    Setting("embedding_scale", "embedding_multiplier", usual=1.0),
    Setting("residual_scale", "residual_multiplier", usual=1.0),
    Setting("attention.scale", "attention_multiplier", usual=1.0),
    Setting("logit_scale", "logits_scaling", usual=1.0),
)

FAMILIES = (
    Architecture(
        "llama",
        "llama",
        "LlamaForCausalLM",
        TOP,
        block("attention_bias", "attention_bias", "mlp_bias", "rope"),
        also=("mistral",),
        freq_factors=True,
        scaled=True,
    ),
    Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", TOP, block("always"), fixed={"use_sliding_window": False}),
    Architecture(
        "qwen3",
        "qwen3",
        "Qwen3ForCausalLM",
        TOP,
        (*block(), *HEAD_NORMS),
        fixed={"use_sliding_window": False, "attention_bias": False},
        scaled=True,
    ),
    Architecture(
        "gemma",
        "gemma",
        "GemmaForCausalLM",
        _gemma(TOP[:2]),
        _gemma(block()),
        fixed={"tie_word_embeddings": True, "attention_bias": False},
        acts=_GEMMA_ACTS,
    ),
    Architecture(
        "gemma2",
        "gemma2",
        "Gemma2ForCausalLM",
        _gemma(TOP[:2]),
        _GEMMA2_BLOCK,
        fixed={"tie_word_embeddings": True, "attention_bias": False},
        settings=(
            _WINDOW,
            Setting("attn_logit_softcapping", "attn_logit_softcapping", usual=50.0),
            Setting("final_logit_softcapping", "final_logit_softcapping", usual=30.0),
        ),
        renamed={"hidden_act": "hidden_activation"},
        acts=_GEMMA_ACTS,
        window=2,
        scaled_at=46,
    ),
    Architecture(
        "gemma3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        _gemma(TOP[:2]),
        (*_GEMMA2_BLOCK, *_gemma(HEAD_NORMS)),
        fixed={
            "tie_word_embeddings": True,
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
        settings=(_WINDOW,),
        renamed={"hidden_act": "hidden_activation"},
        acts=_GEMMA_ACTS,
        window=6,
        local_theta=10000.0,
        scaled_at=62,
    ),
    Architecture(
        "olmo2",
        "olmo2",
        "Olmo2ForCausalLM",
        TOP,
        (*attention()[1:], *feed_forward(), *ROW_NORMS, *_AFTER),
        fixed={"attention_bias": False},
    ),
    Architecture(
        "phi3",
        "phi3",
        "Phi3ForCausalLM",
        TOP,
        (
            attention()[0],
            Slot("attn_qkv", "self_attn.qkv_proj", ("query+key+value", "hidden")),
            attention()[4],
            FFN_NORM,
            *FUSED_FEED_FORWARD,
        ),
        sized=False,
        partial_rope=1.0,
        long_rope=True,
    ),
    Architecture(
        "smollm3",
        "smollm3",
        "SmolLM3ForCausalLM",
        TOP,
        block(rows="rope"),
        fixed={"attention_bias": False, "mlp_bias": False},
        no_rope=4,
    ),
    Architecture(
        "starcoder2",
        "starcoder2",
        "Starcoder2ForCausalLM",
        LAYER_NORMED_TOP,
        (
            replace(attention()[0], bias="always"),
            *attention("always", "always")[1:],
            replace(FFN_NORM, bias="always"),
            Slot("ffn_up", "mlp.c_fc", ("inner", "hidden"), "always"),
            Slot("ffn_down", "mlp.c_proj", ("hidden", "inner"), "always"),
        ),
        fixed={"use_bias": True},
        acts=("gelu_pytorch_tanh", "gelu", "gelu_new"),
        rms=False,
        epsilon="norm_epsilon",
    ),
    Architecture(
        "granite",
        "granite",
        "GraniteForCausalLM",
        TOP,
        block("attention_bias", "attention_bias", "mlp_bias", "rope"),
        settings=GRANITE_SETTINGS,
        freq_factors=True,
    ),
    Architecture(
        "command-r",
        "cohere",
        "CohereForCausalLM",
        TOP[:2],
        (
            *_COHERE_BLOCK,
            Slot("attn_q_norm", "self_attn.q_norm", ("heads", "head"), when="use_qk_norm", least=64, exact=True),
            Slot("attn_k_norm", "self_attn.k_norm", ("key heads", "head"), when="use_qk_norm", least=64, exact=True),
        ),
        fixed={"tie_word_embeddings": True, "attention_bias": False},
        settings=(_LOGIT_SCALE,),
        rms=False,
        epsilon="layer_norm_eps",
        sized=False,
    ),
    Architecture(
        "cohere2",
        "cohere2",
        "Cohere2ForCausalLM",
        TOP[:2],
        _COHERE_BLOCK,
        fixed={"tie_word_embeddings": True, "attention_bias": False},
        settings=(_LOGIT_SCALE, _WINDOW),
        rms=False,
        epsilon="layer_norm_eps",
        window=4,
        scaled=True,
    ),
    Architecture(
        "glm4",
        "glm4",
        "Glm4ForCausalLM",
        TOP,
        (
            *attention("attention_bias"),
            Slot("post_attention_norm", "post_self_attn_layernorm", ("hidden",)),
            FFN_NORM,
            *FUSED_FEED_FORWARD,
            Slot("post_ffw_norm", "post_mlp_layernorm", ("hidden",)),
        ),
        partial_rope=0.5,
    ),
)
