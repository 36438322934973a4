"""Which tensors a model family has, what GGUF and Hugging Face call them, and how GGUF orders their rows.

To add a family: one `Architecture` in `ARCHITECTURES`, with a `Slot` for every tensor. All else (config.json,
shapes, checks, both directions) follows from it.

Names are those of gguf-py (`gguf/constants.py`, TENSOR_NAMES) and of transformers' modules; which tensors may
be missing is what llama.cpp's `src/models/<family>.cpp` loads. Two row orders differ from Hugging Face's:

    rope    llama.cpp rotates neighbouring rows (2i, 2i+1) of a head in the `llama` family, Hugging Face the
            rows (i, i + head/2): `LlamaModel.permute` in llama.cpp's conversion/llama.py
    fused   GPT-NeoX keeps [heads, 3, head] rows of q, k and v in one matrix, llama.cpp [3, heads, head]:
            conversion/gpt_neox.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.kernels.qtensor import QTensor

Axis = Literal["hidden", "inner", "vocab", "query", "key", "head", "fused", "query+key+value", "gate+up"]
Sequences = Literal["same", "rope", "fused"]
# When there is a bias: never, always, or where config.json says so.
Bias = Literal["never", "always", "attention_bias", "mlp_bias"]
TIED = "tie_word_embeddings"


@dataclass(frozen=True)
class Dims:
    """The sizes that every shape of a decoder follows from; `head` is the size of one."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocab: int

    def extent(self, axis: Axis) -> int:
        """How long an axis of that name is."""
        return {
            "hidden": self.hidden,
            "inner": self.inner,
            "vocab": self.vocab,
            "query": self.heads * self.head,
            "key": self.kv_heads * self.head,
            "head": self.head,
            "fused": 3 * self.heads * self.head,
            "query+key+value": (self.heads + 2 * self.kv_heads) * self.head,
            "gate+up": 2 * self.inner,
        }[axis]


@dataclass(frozen=True)
class Slot:
    """One tensor of a family: `<gguf>.weight` there, `<hf>.weight` here, [axes]; perhaps `.bias` too.

    `also` is another name that transformers gives it; `untied`: absent if the embedding serves as it.
    `plus`: what llama.cpp's values are larger by.
    """

    gguf: str
    hf: str
    axes: tuple[Axis, ...]
    bias: Bias = "never"
    rows: Sequences = "same"
    also: str = ""
    untied: bool = False
    plus: float = 0.0


@dataclass(frozen=True)
class Place:
    """One tensor of one model: its full names on both sides (`hf`: any of them) and Hugging Face's shape."""

    gguf: str
    hf: tuple[str, ...]
    shape: tuple[int, ...]
    rows: Sequences
    plus: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """One family: `name` is GGUF's `general.architecture`, `model_type` and `model_class` Hugging Face's.

    `also`: other model types of the same tensors and arithmetic.
    `fixed`: keys of config.json that GGUF has no words for, and the value that llama.cpp computes with.
    `acts`: the activations that it computes, by Hugging Face's names; the first is written.
    `rms`: whether norms are RMS norms; `epsilon`: config.json's name for what they add to the variance.
    `grouped`: whether heads may share keys, or be of an unusual size; `parallel`: whether it has that flag.
    `freq_factors`: whether it reads `rope_freqs.weight`; `no_rope`: every so many layers one goes without positions.
    `partial_rope`: the part of a head that is rotated if config.json does not say; None: always all of it.
    `buffers`: suffixes of tensors in old files that are computed, not learned.
    """

    name: str
    model_type: str
    model_class: str
    top: tuple[Slot, ...]
    block: tuple[Slot, ...]
    block_prefix: str = "model.layers"
    fixed: Mapping[str, object] = field(default_factory=dict)
    acts: tuple[str, ...] = ("silu", "swish")
    rms: bool = True
    epsilon: str = "rms_norm_eps"
    grouped: bool = True
    parallel: bool = False
    no_rope: int | None = None
    also: tuple[str, ...] = ()
    freq_factors: bool = False
    partial_rope: float | None = None
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)

    def places(self, dims: Dims, config: Mapping[str, Any]) -> Iterator[Place]:
        """Every tensor that a model of these sizes and this config.json has."""
        for slot in self.top:
            if not (slot.untied and config.get(TIED)):
                yield from _places(slot, "", "", dims, config)
        for layer in range(dims.layers):
            for slot in self.block:
                yield from _places(slot, f"blk.{layer}.", f"{self.block_prefix}.{layer}.", dims, config)


def _places(slot: Slot, gguf: str, hf: str, dims: Dims, config: Mapping[str, Any]) -> Iterator[Place]:
    shape = tuple(dims.extent(axis) for axis in slot.axes)
    biased = slot.bias == "always" or bool(config.get(slot.bias))
    for kind, extents in (("weight", shape), ("bias", shape[:1]))[: 1 + biased]:
        names = tuple(f"{hf}{stem}.{kind}" for stem in (slot.hf, slot.also) if stem)
        yield Place(f"{gguf}{slot.gguf}.{kind}", names, extents, slot.rows, slot.plus)


def is_tied(family: Architecture, model: ModelSpec) -> bool:
    """Whether the embedding serves as output: where there is no other, or only a dense copy of it."""
    names = [f"{slot.hf}.weight" for slot in family.top if slot.untied]
    heads = [model.tensors[name] for name in names if name in model.tensors]
    said = model.config.get(TIED)
    if not heads:
        return said is not False
    return bool(said) and heads[0].format is None


def row_order(place: Place, dims: Dims) -> Tensor | None:
    """int64 [rows], the Hugging Face row that each row of the GGUF tensor is; None where they agree."""
    index = torch.arange(place.shape[0])
    if place.rows == "rope":
        return index.view(-1, 2, dims.head // 2).transpose(1, 2).flatten()
    if place.rows == "fused":
        return index.view(dims.heads, 3, dims.head).transpose(0, 1).flatten()
    return None


def reorder(tensor: Tensor | QTensor, order: Tensor) -> Tensor | QTensor:
    """The rows of `tensor` in another order; a QTensor's parameters [rows, …] move with its codes."""
    if isinstance(tensor, Tensor):
        return tensor[order]
    params = {name: value[order] for name, value in tensor.params.items()}
    return QTensor(tensor.format, tensor.codes[order], params)


_TOP = (
    Slot("token_embd", "model.embed_tokens", ("vocab", "hidden")),
    Slot("output_norm", "model.norm", ("hidden",)),
    Slot("output", "lm_head", ("vocab", "hidden"), untied=True),
)


def _block(qkv: Bias = "never", out: Bias = "never", mlp: Bias = "never", rows: Sequences = "same") -> tuple[Slot, ...]:
    """The block that Llama and its descendants share."""
    return (
        Slot("attn_norm", "input_layernorm", ("hidden",)),
        Slot("attn_q", "self_attn.q_proj", ("query", "hidden"), qkv, rows),
        Slot("attn_k", "self_attn.k_proj", ("key", "hidden"), qkv, rows),
        Slot("attn_v", "self_attn.v_proj", ("key", "hidden"), qkv),
        Slot("attn_output", "self_attn.o_proj", ("hidden", "query"), out),
        Slot("ffn_norm", "post_attention_layernorm", ("hidden",)),
        Slot("ffn_gate", "mlp.gate_proj", ("inner", "hidden"), mlp),
        Slot("ffn_up", "mlp.up_proj", ("inner", "hidden"), mlp),
        Slot("ffn_down", "mlp.down_proj", ("hidden", "inner"), mlp),
    )


_QWEN3_NORMS = (
    Slot("attn_q_norm", "self_attn.q_norm", ("head",)),
    Slot("attn_k_norm", "self_attn.k_norm", ("head",)),
)
_NEOX_TOP = (
    Slot("token_embd", "gpt_neox.embed_in", ("vocab", "hidden")),
    Slot("output_norm", "gpt_neox.final_layer_norm", ("hidden",), "always"),
    Slot("output", "embed_out", ("vocab", "hidden"), also="lm_head"),
)
_NEOX_BLOCK = (
    Slot("attn_norm", "input_layernorm", ("hidden",), "always"),
    Slot("attn_qkv", "attention.query_key_value", ("fused", "hidden"), "always", "fused"),
    Slot("attn_output", "attention.dense", ("hidden", "query"), "always"),
    Slot("ffn_norm", "post_attention_layernorm", ("hidden",), "always"),
    Slot("ffn_up", "mlp.dense_h_to_4h", ("inner", "hidden"), "always"),
    Slot("ffn_down", "mlp.dense_4h_to_h", ("hidden", "inner"), "always"),
)

_GEMMA_TOP = (_TOP[0], replace(_TOP[1], plus=1.0))
_GEMMA_BLOCK = tuple(replace(slot, plus=1.0) if slot.axes == ("hidden",) else slot for slot in _block())
_OLMO2_BLOCK = (
    *(slot for slot in _block() if slot.axes != ("hidden",)),
    Slot("attn_q_norm", "self_attn.q_norm", ("query",)),
    Slot("attn_k_norm", "self_attn.k_norm", ("key",)),
    Slot("post_attention_norm", "post_attention_layernorm", ("hidden",)),
    Slot("post_ffw_norm", "post_feedforward_layernorm", ("hidden",)),
)
_PHI3_BLOCK = (
    Slot("attn_norm", "input_layernorm", ("hidden",)),
    Slot("attn_qkv", "self_attn.qkv_proj", ("query+key+value", "hidden")),
    Slot("attn_output", "self_attn.o_proj", ("hidden", "query")),
    Slot("ffn_norm", "post_attention_layernorm", ("hidden",)),
    Slot("ffn_up", "mlp.gate_up_proj", ("gate+up", "hidden")),
    Slot("ffn_down", "mlp.down_proj", ("hidden", "inner")),
)
_STARCODER2_TOP = (_TOP[0], replace(_TOP[1], bias="always"), _TOP[2])
_STARCODER2_BLOCK = (
    Slot("attn_norm", "input_layernorm", ("hidden",), "always"),
    Slot("attn_q", "self_attn.q_proj", ("query", "hidden"), "always"),
    Slot("attn_k", "self_attn.k_proj", ("key", "hidden"), "always"),
    Slot("attn_v", "self_attn.v_proj", ("key", "hidden"), "always"),
    Slot("attn_output", "self_attn.o_proj", ("hidden", "query"), "always"),
    Slot("ffn_norm", "post_attention_layernorm", ("hidden",), "always"),
    Slot("ffn_up", "mlp.c_fc", ("inner", "hidden"), "always"),
    Slot("ffn_down", "mlp.c_proj", ("hidden", "inner"), "always"),
)

_FAMILIES = (
    Architecture(
        "llama",
        "llama",
        "LlamaForCausalLM",
        _TOP,
        _block("attention_bias", "attention_bias", "mlp_bias", "rope"),
        also=("mistral",),
        freq_factors=True,
    ),
    Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", _TOP, _block("always"), fixed={"use_sliding_window": False}),
    Architecture(
        "qwen3",
        "qwen3",
        "Qwen3ForCausalLM",
        _TOP,
        (*_block(), *_QWEN3_NORMS),
        fixed={"use_sliding_window": False, "attention_bias": False},
    ),
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
        parallel=True,
        partial_rope=0.25,
        buffers=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
    ),
    Architecture(
        "gemma",
        "gemma",
        "GemmaForCausalLM",
        _GEMMA_TOP,
        _GEMMA_BLOCK,
        fixed={"tie_word_embeddings": True, "attention_bias": False},
        acts=("gelu_pytorch_tanh",),
    ),
    Architecture("olmo2", "olmo2", "Olmo2ForCausalLM", _TOP, _OLMO2_BLOCK, fixed={"attention_bias": False}),
    Architecture("phi3", "phi3", "Phi3ForCausalLM", _TOP, _PHI3_BLOCK),
    Architecture(
        "smollm3",
        "smollm3",
        "SmolLM3ForCausalLM",
        _TOP,
        _block(rows="rope"),
        fixed={"attention_bias": False, "mlp_bias": False},
        no_rope=4,
    ),
    Architecture(
        "starcoder2",
        "starcoder2",
        "Starcoder2ForCausalLM",
        _STARCODER2_TOP,
        _STARCODER2_BLOCK,
        fixed={"use_bias": True},
        acts=("gelu_pytorch_tanh", "gelu", "gelu_new"),
        rms=False,
        epsilon="norm_epsilon",
    ),
)
ARCHITECTURES: Mapping[str, Architecture] = {family.name: family for family in _FAMILIES}
