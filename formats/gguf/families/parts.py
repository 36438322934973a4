"""What families share: the tensors around the blocks, and the block of Llama and its descendants."""

from __future__ import annotations

from dataclasses import replace

from compress.formats.gguf.names import Bias, Sequences, Slot

TOP = (
    Slot("token_embd", "model.embed_tokens", ("vocab", "hidden")),
    Slot("output_norm", "model.norm", ("hidden",)),
    Slot("output", "lm_head", ("vocab", "hidden"), untied=True),
)
LAYER_NORMED_TOP = (TOP[0], replace(TOP[1], bias="always"), TOP[2])


def attention(qkv: Bias = "never", out: Bias = "never", rows: Sequences = "same") -> tuple[Slot, ...]:
    """The norm before attention, and its four matrices."""
    return (
        Slot("attn_norm", "input_layernorm", ("hidden",)),
        Slot("attn_q", "self_attn.q_proj", ("query", "hidden"), qkv, rows),
        Slot("attn_k", "self_attn.k_proj", ("key", "hidden"), qkv, rows),
        Slot("attn_v", "self_attn.v_proj", ("key", "hidden"), qkv),
        Slot("attn_output", "self_attn.o_proj", ("hidden", "query"), out),
    )


FFN_NORM = Slot("ffn_norm", "post_attention_layernorm", ("hidden",))


def feed_forward(bias: Bias = "never") -> tuple[Slot, ...]:
    """The three matrices behind attention."""
    return (
        Slot("ffn_gate", "mlp.gate_proj", ("inner", "hidden"), bias),
        Slot("ffn_up", "mlp.up_proj", ("inner", "hidden"), bias),
        Slot("ffn_down", "mlp.down_proj", ("hidden", "inner"), bias),
    )


FUSED_FEED_FORWARD = (
    Slot("ffn_up", "mlp.gate_up_proj", ("gate+up", "hidden")),
    Slot("ffn_down", "mlp.down_proj", ("hidden", "inner")),
)


def block(qkv: Bias = "never", out: Bias = "never", mlp: Bias = "never", rows: Sequences = "same") -> tuple[Slot, ...]:
    """The block that Llama and its descendants share."""
    return (*attention(qkv, out, rows), FFN_NORM, *feed_forward(mlp))


HEAD_NORMS = (
    Slot("attn_q_norm", "self_attn.q_norm", ("head",)),
    Slot("attn_k_norm", "self_attn.k_norm", ("head",)),
)
ROW_NORMS = (
    Slot("attn_q_norm", "self_attn.q_norm", ("query",)),
    Slot("attn_k_norm", "self_attn.k_norm", ("key",)),
)
