"""Which tensors a model family has, what GGUF and Hugging Face call them, and how GGUF orders their rows.

The families themselves are data: see families/.

Names are those of gguf-py (`gguf/constants.py`, TENSOR_NAMES) and of transformers' modules; which tensors may
be missing is what llama.cpp's `src/models/<family>.cpp` loads. Rows lie otherwise than Hugging Face's:

    rope    llama.cpp rotates neighbouring rows (2i, 2i+1) of a head in the `llama` family, Hugging Face the
            rows (i, i + head/2): `LlamaModel.permute` in llama.cpp's conversion/llama.py
    fused   GPT-NeoX and Falcon keep the rows of q, k and v of each head with keys together, [groups, q… k v, head],
            llama.cpp all of q, then k, then v: conversion/gpt_neox.py, conversion/falcon.py
    parts   where Hugging Face keeps gate and up of an expert in one matrix, llama.cpp has two: its first and its
            last rows, or its even and its odd ones (gpt-oss): conversion/granite.py, conversion/gpt_oss.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.gguf.blocks.scales import has_scale
from compress.kernels.qtensor import QTensor

Axis = Literal[
    "hidden", "inner", "vocab", "query", "key", "head", "heads", "key heads", "context", "one", "query+key+value",
    "gate+up", "experts", "expert", "expert gate+up", "shared", "shared gate+up",
]  # fmt: skip
Sequences = Literal["same", "rope", "fused"]
Part = Literal["first", "last", "even", "odd"]
# When there is a bias: never, always, or where config.json says so.
Bias = Literal["never", "always", "attention_bias", "mlp_bias", "qkv_bias"]
TIED = "tie_word_embeddings"
EXPERT = "{expert}"
"""Stands for an expert's number in a name of Hugging Face's."""


@dataclass(frozen=True)
class Dims:
    """The sizes that every shape of a decoder follows from; `head` is the size of one.

    `experts`: how many a layer has; `expert` and `shared` are the inner sizes of one and of the shared one.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocab: int
    context: int = 0
    experts: int = 0
    expert: int = 0
    shared: int = 0

    def extent(self, axis: Axis) -> int:
        """How long an axis of that name is."""
        return {
            "hidden": self.hidden,
            "inner": self.inner,
            "vocab": self.vocab,
            "query": self.heads * self.head,
            "key": self.kv_heads * self.head,
            "head": self.head,
            "heads": self.heads,
            "context": self.context,
            "one": 1,
            "key heads": self.kv_heads,
            "query+key+value": (self.heads + 2 * self.kv_heads) * self.head,
            "gate+up": 2 * self.inner,
            "experts": self.experts,
            "expert": self.expert,
            "expert gate+up": 2 * self.expert,
            "shared": self.shared,
            "shared gate+up": 2 * self.shared,
        }[axis]


@dataclass(frozen=True)
class Slot:
    """One tensor of a family: `<gguf>.weight` there, `<hf>.weight` here, [axes]; perhaps `.bias` too.

    `also` is another name that transformers gives it; `untied`: absent if the embedding serves as it.
    `plus`: what llama.cpp's values are larger by. `bare`: here it has no `.weight` at its end. `when`: a flag of
    config.json without which there is no such tensor, or with `!` before it the opposite; `least`: llama.cpp looks for
    it in models of so many layers only. `flat`: llama.cpp has its one row as a vector.
    `part`: it is only these rows of the tensor here. `stack`: what holds it for all experts, the whole name (a bias'
    ends in `_bias`), where `hf` names one expert's, with EXPERT in it; `transposed`: while dense, files have it, or
    its stack, as [in, out]. `exact`: llama.cpp computes with it in fp32 alone. `sparse`: in layers of experts only, or
    in the others only, where a family has both.
    """

    gguf: str
    hf: str
    axes: tuple[Axis, ...]
    bias: Bias = "never"
    rows: Sequences = "same"
    also: str = ""
    untied: bool = False
    plus: float = 0.0
    bare: bool = False
    when: str = ""
    least: int = 0
    flat: bool = False
    part: Part | None = None
    stack: str = ""
    transposed: bool = False
    exact: bool = False
    sparse: bool | None = None


@dataclass(frozen=True)
class Place:
    """One tensor of one model: its full names on both sides (`hf`: any of them) and Hugging Face's shape.

    The shape is that of the tensor named in `hf`: of one expert's matrix where there are `experts`. `stack` holds
    them all, [experts, *shape]. `scaled`: llama.cpp multiplies what it gives by a scale that lies beside it. The rest
    is as in Slot.
    """

    gguf: str
    hf: tuple[str, ...]
    shape: tuple[int, ...]
    rows: Sequences = "same"
    plus: float = 0.0
    flat: bool = False
    part: Part | None = None
    experts: int = 0
    stack: str = ""
    transposed: bool = False
    exact: bool = False
    scaled: bool = False

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in GGUF."""
        if self.flat:
            return self.shape[1:]
        rows = self.shape[0] // 2 if self.part else self.shape[0]
        return (*((self.experts,) if self.experts else ()), rows, *self.shape[1:])

    def names(self, expert: int | None = None) -> tuple[str, ...]:
        """The names here, of the tensor or of one expert's."""
        return tuple(name.replace(EXPERT, str(expert)) for name in self.hf)

    @property
    def known(self) -> Iterator[str]:
        """Every name here that it or a part of it may have."""
        for expert in range(self.experts or 1):
            yield from self.names(expert)
        if self.stack:
            yield self.stack


@dataclass(frozen=True)
class Setting:
    """A number that both sides have: GGUF's key after the family's name, and config.json's.

    `usual` is what it is where the one that is read says nothing; None: it must say.
    """

    gguf: str
    name: str
    whole: bool = False
    usual: float | None = None


@dataclass(frozen=True)
class Architecture:
    """One family: `name` is GGUF's `general.architecture`, `model_type` and `model_class` Hugging Face's.

    `also`: other model types of the same tensors and arithmetic.
    `fixed`: keys of config.json that GGUF has no words for, and the value that llama.cpp computes with.
    `settings`: numbers of its own. `renamed`: what config.json calls a key that most families call otherwise.
    `derived`, `own`: keys that most families have out of a config.json of this one, and back.
    `acts`: the activations that it computes, by Hugging Face's names; the first is written.
    `rms`: whether norms are RMS norms; `epsilon`: config.json's name for what they add to the variance.
    `grouped`: whether heads may share keys; `sized`: whether config.json has a size of a head.
    `parallel`: whether it has that flag; `rotates`: whether positions are rotations, not learned.
    `window`: every so many layers one sees all, the others a sliding window.
    `freq_factors`: whether it reads `rope_freqs.weight`; `long_rope`: `rope_factors_long.weight` and `_short.weight`.
    `no_rope`: every so many layers one goes without positions; `chunked`: the others see their own chunk of the text.
    `sparse`: the key of every how many layers one has experts, where the others have none.
    `partial_rope`: the part of a head that is rotated if config.json does not say; None: always all of it.
    `local_theta`: the base of the rotation in layers with a window, where that is one of its own.
    `scaled_at`: attention is scaled by a head's size, but by hidden over heads in a model of so many layers.
    `scaled`: whether it multiplies what feed-forward matrices give by a scale beside them, as it does elsewhere.
    `truncate`: whether YaRN's range is rounded to whole dimensions, as config.json says it.
    `buffers`: suffixes of tensors in old files that are computed, not learned.
    """

    name: str
    model_type: str
    model_class: str
    top: tuple[Slot, ...]
    block: tuple[Slot, ...]
    block_prefix: str = "model.layers"
    fixed: Mapping[str, object] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: {}
    own: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: {}
    acts: tuple[str, ...] = ("silu", "swish")
    rms: bool = True
    epsilon: str = "rms_norm_eps"
    grouped: bool = True
    sized: bool = True
    parallel: bool = False
    rotates: bool = True
    window: int | None = None
    no_rope: int | None = None
    chunked: bool = False
    sparse: str = ""
    also: tuple[str, ...] = ()
    freq_factors: bool = False
    long_rope: bool = False
    partial_rope: float | None = None
    local_theta: float | None = None
    scaled_at: int | None = None
    scaled: bool = False
    truncate: bool = True
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)

    @property
    def has_experts(self) -> bool:
        """Whether tokens choose among several feed-forward networks."""
        return any(EXPERT in slot.hf for slot in self.block)

    def standard(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` with the keys that most families have, too."""
        renamed = {ours: config[own] for ours, own in self.renamed.items() if config.get(own) is not None}
        common = {**config, **renamed}
        return {**common, **self.derived(common)}

    def places(self, dims: Dims, config: Mapping[str, Any]) -> Iterator[Place]:
        """Every tensor that a model of these sizes and this config.json has."""
        config = self.standard(config)
        for slot in self.top:
            if not (slot.untied and config.get(TIED)):
                yield from _places(slot, "", "", dims, config, self.scaled)
        for layer in range(dims.layers):
            sparse = bool(self.sparse) and (layer + 1) % int(config[self.sparse]) == 0
            for slot in (slot for slot in self.block if slot.sparse in (None, sparse)):
                yield from _places(slot, f"blk.{layer}.", f"{self.block_prefix}.{layer}.", dims, config, self.scaled)


def _places(slot: Slot, gguf: str, hf: str, dims: Dims, config: Mapping[str, Any], scaled: bool) -> Iterator[Place]:
    flag = slot.when.removeprefix("!")
    if flag and bool(config.get(flag)) == (flag != slot.when):
        return
    shape = tuple(dims.extent(axis) for axis in slot.axes)
    biased = slot.bias == "always" or bool(config.get(slot.bias))
    for kind, extents in (("weight", shape), ("bias", shape[:1]))[: 1 + biased]:
        end = "" if slot.bare else f".{kind}"
        stack = slot.stack and f"{hf}{slot.stack}{'_bias' if kind == 'bias' else ''}"
        yield Place(
            f"{gguf}{slot.gguf}.{kind}",
            tuple(f"{hf}{stem}{end}" for stem in (slot.hf, slot.also) if stem),
            extents,
            slot.rows,
            slot.plus,
            flat=slot.flat,
            part=slot.part,
            experts=dims.experts if EXPERT in slot.hf else 0,
            stack=stack,
            transposed=slot.transposed and kind == "weight",
            exact=slot.exact,
            # With a bias as well it ends the program instead (GGML_ASSERT in build_ffn).
            scaled=has_scale(f"{gguf}{slot.gguf}.{kind}")
            and ((scaled and not biased) or not slot.gguf.startswith("ffn")),
        )


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
    if place.part:
        half = len(index) // 2
        return {"first": index[:half], "last": index[half:], "even": index[::2], "odd": index[1::2]}[place.part]
    if place.rows == "rope":
        return index.view(-1, 2, dims.head // 2).transpose(1, 2).flatten()
    if place.rows == "fused":
        queries = dims.heads // dims.kv_heads
        groups = index.view(dims.kv_heads, queries + 2, dims.head).split([queries, 1, 1], 1)
        return torch.cat([group.flatten() for group in groups])
    return None


def reorder(tensor: Tensor | QTensor, order: Tensor) -> Tensor | QTensor:
    """The rows of `tensor` in another order; a QTensor's parameters [rows, …] move with its codes."""
    if isinstance(tensor, Tensor):
        return tensor[order]
    params = {name: value[order] for name, value in tensor.params.items()}
    return QTensor(tensor.format, tensor.codes[order], params)
