"""Mixes of types, by llama.cpp's names, and the type that a tensor gets whose rows a type does not divide.

A mix gives most matrices one type, and some that cost much a finer one. Which those are is llama.cpp's choice, said
here anew (`src/llama-quant.cpp`, October 2026: llama_tensor_get_type and tensor_type_fallback). What it calls Q2_K is
`q2_k_m` here, for `q2_k` is the type. Models with experts and Falcon have rules of their own there, and none here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.formats.gguf.config import dims_of, family_of
from compress.formats.gguf.names import TIED, Dims, is_tied

Mix = Literal["q2_k_s", "q2_k_m", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m"]
LABELS: Mapping[str, str] = {"q2_k_m": "q2_k"}
"""What llama.cpp calls a mix, where that is not its name here."""
FILE_TYPES: Mapping[str, int] = {
    "q2_k_s": 21, "q2_k_m": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16,
    "q5_k_m": 17,
}  # fmt: skip
"""llama.h, enum llama_ftype."""

_SUBSTITUTES = {
    "q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl",
    "tq1_0": "q4_0", "tq2_0": "q4_0",
}  # fmt: skip
_SUPER_BLOCK, _BLOCK = 256, 32
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_SEVENTY = 80
"""The layers of Llama 2 and 3 70B and Qwen 72B; their v matrices are small beside the others."""


class Substitute(NamedTuple):
    """The type `found` for the type `wanted`, whose super-blocks do not divide rows of so many columns."""

    wanted: str
    found: str
    columns: int


class Traits(NamedTuple):
    """What a choice depends on: how many layers, query heads for each key head; whether the embedding is the output."""

    layers: int
    sharing: int
    tied: bool

    @classmethod
    def of(cls, dims: Dims, config: Mapping[str, Any]) -> Traits:
        """Those of a model whose config.json says whether the embedding is the output."""
        return cls(dims.layers, dims.heads // dims.kv_heads, bool(config.get(TIED)))


def is_mix(kind: str) -> TypeGuard[Mix]:
    """Whether `kind` is a mix, not a type."""
    return kind in get_args(Mix)


def base_of(mix: Mix) -> str:
    """The type of most matrices."""
    return mix[: len("q4_k")]


def mixed(mix: Mix, tensor: str, columns: int, traits: Traits) -> str:
    """The type of the matrix `tensor`, by GGUF's name, with rows of so many `columns`; perhaps one they do not fit."""
    if tensor == "output.weight" or (tensor == "token_embd.weight" and traits.tied):
        return "q8_0" if columns % _SUPER_BLOCK else "q6_k"
    found = _LAYER.fullmatch(tensor)
    layer, stem = (int(found[1]), found[2]) if found else (0, "")
    if stem in ("attn_v", "attn_qkv"):
        chosen = _values(mix, layer, traits)
        return "q5_k" if _is_large(traits) and chosen in ("q3_k", "q4_k") else chosen
    if stem == "ffn_down":
        return _down(mix, layer, traits.layers)
    if stem == "attn_output":
        return {"q2_k_m": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(mix, base_of(mix))
    return base_of(mix)


def mixed_modules(model: ModelSpec, mixes: Mapping[str, str]) -> dict[str, str]:
    """The type of each module that has a mix in `mixes`, by Hugging Face's name without `.weight`.

    Raises RefusedError for a family, or a module, that llama.cpp does not have.
    """
    if not mixes:
        return {}
    family, dims = family_of(model.config), dims_of(model.config)
    config = {**model.config, TIED: is_tied(family, model)}
    places = {name: place for place in family.places(dims, config) for name in place.known}
    found: dict[str, str] = {}
    for module, mix in mixes.items():
        place = places.get(f"{module}.weight")
        if place is None:
            raise RefusedError(f"{mix} says nothing of {module}: llama.cpp's {family.name} models have no such tensor")
        assert is_mix(mix)
        found[module] = mixed(mix, place.gguf, place.shape[-1], Traits.of(dims, config))
    return found


def fitting(kind: str, columns: int) -> str:
    """`kind`, or what llama.cpp takes for it where its super-blocks do not divide rows of so many columns."""
    if kind not in _SUBSTITUTES or columns % _SUPER_BLOCK == 0:
        return kind
    return "f16" if columns % _BLOCK else _SUBSTITUTES[kind]


def substitutes_told(counts: Mapping[Substitute, int]) -> tuple[str, ...]:
    """A line for each kind of substitute, and how many matrices have it."""
    return tuple(
        f"{count} matri{'x' if count == 1 else 'ces'} in {found}, not {wanted}: {columns} columns are no super-blocks"
        for (wanted, found, columns), count in sorted(counts.items())
    )


def _values(mix: Mix, layer: int, traits: Traits) -> str:
    """Of the projection to values, alone or fused with those to queries and keys."""
    shared = traits.sharing >= 4
    match mix:
        case "q2_k_m":
            return "q4_k" if shared else "q3_k"
        case "q2_k_s":
            return "q4_k" if shared else "q2_k"
        case "q3_k_m":
            return "q5_k" if layer < 2 else "q4_k"
        case "q3_k_l":
            return "q5_k"
        case "q4_k_s":
            return "q5_k" if layer < 4 else "q4_k"
        case "q4_k_m" | "q5_k_m" if _is_sensitive(layer, traits.layers):
            return "q6_k"
        case _:
            return base_of(mix)


def _down(mix: Mix, layer: int, layers: int) -> str:
    """Of the feed-forward's second projection."""
    first = layer < layers // 8
    match mix:
        case "q2_k_m":
            return "q3_k"
        case "q2_k_s" if first:
            return "q4_k"
        case "q3_k_m":
            return "q5_k" if layer < layers // 16 else "q4_k"
        case "q3_k_l":
            return "q5_k"
        case "q4_k_s" if first:
            return "q5_k"
        case "q4_k_m" | "q5_k_m" if _is_sensitive(layer, layers):
            return "q6_k"
        case _:
            return base_of(mix)


def _is_sensitive(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _is_large(traits: Traits) -> bool:
    return traits.layers == _SEVENTY and traits.sharing > 1
