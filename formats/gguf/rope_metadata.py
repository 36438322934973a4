"""Rotary embeddings in GGUF's metadata, keys `<family>.rope.*`: to a `Rope` and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.header import Value
from compress.formats.gguf.metadata import Metadata, real, required, shortest, string, uint
from compress.formats.gguf.names import Architecture
from compress.formats.gguf.rope import FREQS, LONG, SHORT, Rope, llama3_rope, long_attention, rope_config

_LARGEST = (1 << 31) - 1
_OLD_CONTEXT = "original_max_position_embeddings"
_YARN = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
_TOLERANCE = 1e-4


def read_rope_keys(
    family: Architecture, metadata: Metadata, config: Mapping[str, Any], head: int, factors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What config.json says of the rotary embedding of a file, whose heads have the size `head`.

    `config` is the rest of it; `factors` [rotated/2] are the tensors of the embedding, by name. Raises InputError.
    """
    rope = _read_rope(family, metadata, head, factors)
    if family.local_theta is not None:
        local = metadata.number(f"{family.name}.rope.freq_base_swa")
        rope = replace(rope, local=family.local_theta if local is None else local)
    keys = rope_config(rope)
    if rope.kind == "yarn" and not family.truncate:
        keys["rope_parameters"]["truncate"] = keys["rope_scaling"]["truncate"] = False
    if rope.kind == "longrope":
        keys[_OLD_CONTEXT] = int(rope.scaling[_OLD_CONTEXT])
        if abs(long_attention(config["max_position_embeddings"], rope.scaling) - rope.attention) > _TOLERANCE:
            keys["rope_parameters"]["attention_factor"] = keys["rope_scaling"]["attention_factor"] = rope.attention
    if family.partial_rope is not None:
        keys |= {"partial_rotary_factor": rope.partial}
        keys["rope_parameters"]["partial_rotary_factor"] = rope.partial
        if family.epsilon == "layer_norm_eps":
            keys |= {"rotary_pct": rope.partial, "rotary_emb_base": rope.theta}
    return keys


def _read_rope(family: Architecture, metadata: Metadata, head: int, factors: Mapping[str, Tensor]) -> Rope:
    prefix = f"{family.name}.rope."
    theta = metadata.number(f"{prefix}freq_base") or 10000.0
    rotated = metadata.integer(f"{prefix}dimension_count", 2, head) or head
    if rotated % 2 or (rotated != head and family.partial_rope is None):
        raise InputError(f"{prefix}dimension_count is {rotated}; {family.name} rotates whole heads of {head}")
    _check_factors(family, factors, rotated)
    if FREQS in factors:
        return llama3_rope(theta, factors[FREQS])
    kind = metadata.text(f"{prefix}scaling.type") or "linear"
    factor = metadata.number(f"{prefix}scaling.factor") or metadata.number(f"{prefix}scale_linear")
    if LONG in factors:
        return _read_long(Rope(theta, "longrope", partial=rotated / head), prefix, metadata, factors)
    if kind == "none" or factor is None or factor == 1.0:
        return Rope(theta, partial=rotated / head)
    if kind not in ("linear", "yarn"):
        raise InputError(f"{prefix}scaling.type is {kind!r}; known: none, linear, yarn")
    return Rope(theta, kind, {"factor": factor, **_read_yarn(kind, prefix, metadata)}, rotated / head)


def _check_factors(family: Architecture, factors: Mapping[str, Tensor], rotated: int) -> None:
    known = {FREQS} if family.freq_factors else {LONG, SHORT} if family.long_rope else set()
    for name, values in factors.items():
        if name not in known or tuple(values.shape) != (rotated // 2,) or (known & {LONG} and known - set(factors)):
            raise InputError(f"{name}: {family.name} with heads of which {rotated} rotate has no such tensor")


def _read_long(rope: Rope, prefix: str, metadata: Metadata, factors: Mapping[str, Tensor]) -> Rope:
    context = f"{prefix}scaling.original_context_length"
    scaling = {_OLD_CONTEXT: float(required(metadata.integer(context, 1, _LARGEST), context))}
    attention = metadata.number(f"{prefix}scaling.attn_factor") or 1.0
    long, short = (tuple(map(shortest, factors[name].tolist())) for name in (LONG, SHORT))
    return replace(rope, scaling=scaling, long=long, short=short, attention=attention)


def _read_yarn(kind: str, prefix: str, metadata: Metadata) -> dict[str, float]:
    if kind != "yarn":
        return {}
    context = f"{prefix}scaling.original_context_length"
    for name in ("attn_factor", "yarn_attn_factor", "yarn_log_multiplier"):
        if metadata.number(f"{prefix}scaling.{name}") not in (None, 1.0):
            raise InputError(f"{prefix}scaling.{name}: only YaRN's usual attention factor is known here")
    betas = {key: metadata.number(f"{prefix}scaling.{gguf}") for key, gguf in _YARN.items()}
    return {
        "original_max_position_embeddings": required(metadata.integer(context, 1, _LARGEST), context),
        **{key: value for key, value in betas.items() if value is not None},
    }


def write_rope(family: Architecture, rope: Rope, head: int) -> dict[str, Value]:
    """The metadata of `rope`, without the family's name before each. Raises RefusedError for what llama.cpp lacks."""
    if rope.partial != 1.0 and family.partial_rope is None:
        raise RefusedError(f"config.json: llama.cpp rotates whole heads in {family.name}")
    if rope.kind == "llama3" and not family.freq_factors:
        raise RefusedError(f"config.json: llama.cpp has no Llama 3 scaling of {family.name}'s positions")
    rotated = int(rope.partial * head)
    if not 2 <= rotated <= head or rotated % 2:
        raise InputError(f"config.json: {rope.partial:g} of a head of {head} is no even number of dimensions in it")
    pairs = {
        "rope.dimension_count": uint(rotated),
        "rope.freq_base": real(rope.theta),
    }
    if rope.local is not None:
        pairs["rope.freq_base_swa"] = real(rope.local)
    if rope.kind == "longrope":
        pairs |= _write_long(family, rope, head)
    if rope.kind in ("linear", "yarn"):
        pairs["rope.scaling.type"] = string(rope.kind)
        pairs["rope.scaling.factor"] = real(rope.scaling["factor"])
    if rope.kind == "yarn":
        context = int(rope.scaling["original_max_position_embeddings"])
        pairs["rope.scaling.original_context_length"] = uint(context)
        pairs |= {f"rope.scaling.{gguf}": real(rope.scaling[key]) for key, gguf in _YARN.items()}
    return pairs


def _write_long(family: Architecture, rope: Rope, head: int) -> dict[str, Value]:
    if not family.long_rope or {len(rope.long), len(rope.short)} != {int(rope.partial * head) // 2}:
        raise RefusedError(f"config.json: llama.cpp has no such LongRoPE scaling of {family.name}'s positions")
    return {
        "rope.scaling.type": string("longrope"),
        "rope.scaling.attn_factor": real(shortest(rope.attention)),
        "rope.scaling.original_context_length": uint(int(rope.scaling[_OLD_CONTEXT])),
    }
