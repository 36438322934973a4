"""Mixes of types, by the names that llama.cpp gives whole files.

A mix gives most matrices one type, and some that cost much a finer one. Which those are is llama.cpp's choice, said
here anew (`src/llama-quant.cpp`, October 2026: llama_tensor_get_type_impl). As in llama-quantize, capitals mean a file
and small letters a type: `Q4_0` has an output matrix in Q6_K, `q4_0` is one type for all (`told_apart` says where they
differ). Where no type has that name, either spelling will do (`q4_k_m`; `q2_k_m` is Q2_K).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.formats.gguf.blocks.substitutes import SUPER_BLOCK
from compress.formats.gguf.config import dims_of, family_of
from compress.formats.gguf.names import TIED, Architecture, Dims, is_tied

Mix = Literal[
    "q2_k_s", "q2_k_m", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m",
    "Q2_K_S", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4_MOE",
]  # fmt: skip
FILE_TYPES: Mapping[str, int] = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "Q2_K_S": 21, "IQ4_NL": 25, "IQ4_XS": 30,
    "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
}  # fmt: skip
"""llama.h, enum llama_ftype."""
HEEDING = ("Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS")
"""The mixes whose choice is another one where there is an importance matrix."""

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_OUTPUT = "output.weight"
_EMBEDDING = "token_embd.weight"
_SEVENTY = 80
"""The layers of Llama 2 and 3 70B and Qwen 72B; their v matrices are small beside the others."""
_EIGHT = 8
"""The experts of Mixtral 8x7B, for which llama.cpp has rules of its own: its k and v are small beside them."""
_ATTENTION_BESIDE_EIGHT = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")


class Traits(NamedTuple):
    """What a choice depends on: how many layers, query heads for each key head; whether the embedding is the output.

    `weighed`: whether errors are weighed by the inputs; llama.cpp then has an importance matrix.
    """

    layers: int
    sharing: int
    tied: bool
    experts: int = 0
    falcon: bool = False
    weighed: bool = False

    @classmethod
    def of(cls, family: Architecture, dims: Dims, config: Mapping[str, Any], weighed: bool = False) -> Traits:
        """Those of a model whose config.json says whether the embedding is the output."""
        sharing = dims.heads // dims.kv_heads
        return cls(dims.layers, sharing, bool(config.get(TIED)), dims.experts, family.name == "falcon", weighed)


def is_mix(kind: str) -> TypeGuard[Mix]:
    """Whether `kind` is a mix, not a type."""
    return kind in get_args(Mix)


def label_of(mix: Mix) -> str:
    """llama.cpp's own name."""
    return "Q2_K" if mix == "q2_k_m" else mix.upper()


def base_of(mix: Mix) -> str:
    """The type of most matrices."""
    return re.sub(r"_([sml]|moe)$", "", mix.lower())


def twin_of(kind: str) -> str | None:
    """The type whose name has small letters for a mix's capitals, or the mix of a type; None where there is none."""
    if is_mix(kind):
        return kind.lower() if kind.isupper() and base_of(kind) == kind.lower() else None
    return kind.upper() if is_mix(kind.upper()) else None


def told_apart(kind: str, types: Mapping[str, str], others: Mapping[str, str]) -> str | None:
    """A line that says what `kind` was read as, where its twin would be something else; None where it would not.

    `types` are those of tensors, by name, as `kind` has them, `others` as its twin has them.
    """
    differing = [name for name in types if types[name] != others[name]]
    if not differing:
        return None
    first, count = differing[0], f"{len(differing)} of {len(types)} matrices"
    if is_mix(kind):
        return (
            f"{kind} is llama.cpp's mix: {first} is {types[first]} ({count} are not {others[first]}); in small letters "
            f"it is the type {twin_of(kind)} for all"
        )
    return (
        f"{kind} is one type for all; in capitals it is llama.cpp's mix {twin_of(kind)}, in which {first} is "
        f"{others[first]} ({count} are not {types[first]})"
    )


def mixed(mix: Mix, tensor: str, columns: int, traits: Traits) -> str:
    """The type of the matrix `tensor`, by GGUF's name, with rows of so many `columns`; perhaps one they do not fit."""
    name, base = label_of(mix), base_of(mix)
    if tensor == _OUTPUT or (tensor == _EMBEDDING and traits.tied):
        plain = name in ("Q8_0", "MXFP4_MOE") or traits.falcon or columns % SUPER_BLOCK
        return "q8_0" if plain else "q6_k"
    if name == "MXFP4_MOE":
        return base if "_exps." in tensor else "q8_0"
    if tensor == _EMBEDDING:
        return "q4_k" if name in ("TQ1_0", "TQ2_0") else base
    found = _LAYER.fullmatch(tensor)
    return _in_layer(name, base, int(found[1]), found[2], traits) if found else base


def mixed_modules(model: ModelSpec, mixes: Mapping[str, str], weighed: bool = False) -> dict[str, str]:
    """The type of each module that has a mix in `mixes`, by Hugging Face's name without `.weight`.

    Raises RefusedError for a family, or a module, that llama.cpp does not have.
    """
    if not mixes:
        return {}
    family, dims = family_of(model.config), dims_of(model.config)
    config = {**model.config, TIED: is_tied(family, model)}
    traits = Traits.of(family, dims, config, weighed)
    places = {name: place for place in family.places(dims, config) for name in place.known}
    found: dict[str, str] = {}
    for module, mix in mixes.items():
        place = places.get(f"{module}.weight")
        if place is None:
            raise RefusedError(f"{mix} says nothing of {module}: llama.cpp's {family.name} models have no such tensor")
        assert is_mix(mix)
        found[module] = mixed(mix, place.gguf, place.shape[-1], traits)
    return found


def _in_layer(name: str, base: str, layer: int, stem: str, traits: Traits) -> str:
    """The type of a matrix of one layer, by the mix's name and its base."""
    match stem:
        case "attn_v" | "attn_qkv":
            if traits.experts == _EIGHT:
                return "q8_0"
            chosen = _values(name, layer, traits) or base
            return "q5_k" if _is_large(traits) and chosen in ("q3_k", "q4_k") else chosen
        case "attn_k" if traits.experts == _EIGHT:
            return "q8_0"
        case "attn_output":
            return _attention_output(name, traits) or base
        case "ffn_down" | "ffn_down_exps" | "ffn_down_shexp":
            return _down(name, layer, traits) or base
        case _:
            return base


def _values(name: str, layer: int, traits: Traits) -> str | None:
    """Of the projection to values, alone or fused with those to queries and keys; None: as most."""
    shared = traits.sharing >= 4
    match name:
        case "Q2_K":
            return "q4_k" if shared else "q3_k"
        case "Q2_K_S" if shared:
            return "q4_k"
        case "IQ4_NL" | "IQ4_XS" if shared:
            return "q5_k"
        case "Q3_K_M":
            return "q5_k" if layer < 2 else "q4_k"
        case "Q3_K_L":
            return "q5_k"
        case "Q4_K_S" if layer < 4:
            return "q5_k"
        case "Q4_K_M" | "Q5_K_M" if _is_sensitive(layer, traits.layers):
            return "q6_k"
        case _:
            return None


def _attention_output(name: str, traits: Traits) -> str | None:
    """Of what takes attention back into the residual stream; None: as most."""
    if traits.falcon:
        return "q4_k" if name == "Q3_K_L" else None
    if traits.experts == _EIGHT:
        return "q5_k" if name in _ATTENTION_BESIDE_EIGHT else None
    return {"Q2_K": "q3_k", "Q3_K_M": "q4_k", "Q3_K_L": "q5_k"}.get(name)


def _down(name: str, layer: int, traits: Traits) -> str | None:
    """Of the feed-forward's second projection, or the experts'; None: as most."""
    first, very_first = layer < traits.layers // 8, layer < traits.layers // 16
    sensitive = _is_sensitive(layer, traits.layers)
    match name:
        case "Q2_K":
            return "q3_k"
        case "Q2_K_S" if first:
            return "q4_k"
        case "Q3_K_M":
            return "q5_k" if very_first else "q3_k" if traits.falcon and not sensitive else "q4_k"
        case "Q3_K_L":
            return "q4_k" if traits.falcon else "q5_k"
        case "Q4_K_S" if first and not traits.falcon:
            return "q5_k"
        case "Q4_K_M" if traits.falcon and sensitive and not very_first:
            return "q5_k"
        case "Q4_K_M" | "Q5_K_M" if sensitive:
            return "q6_k"
        case "IQ4_NL" | "IQ4_XS" if first and not traits.weighed:
            return "q5_k"
        case "Q4_0" | "Q5_0" if first and traits.weighed:
            return f"{name[:2].lower()}_1"
        case _:
            return None


def _is_sensitive(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _is_large(traits: Traits) -> bool:
    return traits.layers == _SEVENTY and traits.sharing > 1
