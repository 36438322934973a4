"""config.json from GGUF metadata and GGUF metadata from config.json.

Keys: gguf-py, `gguf/constants.py`, class Keys; config.json gets the keys of transformers 4 and 5 both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compress.formats.errors import InputError, RefusedError
from compress.formats.files.config_limits import LIMITS
from compress.formats.gguf.header import Value
from compress.formats.gguf.metadata import Metadata, flag, real, shortest, string, uint
from compress.formats.gguf.names import ARCHITECTURES, Architecture, Dims
from compress.formats.gguf.rope import Rope, llama3_rope, rope_config, rope_of

_HEADS, _KV_HEADS, _HEAD = "num_attention_heads", "num_key_value_heads", "head_dim"
# GGUF's key and config.json's.
_SIZES = (
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", _HEADS),
)
_PARALLEL = "use_parallel_residual"
_NO_ROPE = "no_rope_layers"
# What config.json calls a role of the tokenizer.
_TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
_YARN = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}


def family_of(config: Mapping[str, Any]) -> Architecture:
    """The family of a model with this config.json. Raises RefusedError for one that is not known here."""
    for family in ARCHITECTURES.values():
        if config.get("model_type") in (family.model_type, *family.also):
            return family
    known = ", ".join(kind for family in ARCHITECTURES.values() for kind in (family.model_type, *family.also))
    raise RefusedError(f"GGUF: the model type {config.get('model_type')!r} is not known here", f"known: {known}")


def dims_of(config: Mapping[str, Any]) -> Dims:
    """The sizes in a config.json. Raises InputError for what is missing, absurd, or does not divide."""
    hidden, heads = _size(config, "hidden_size"), _size(config, _HEADS)
    head = _size(config, _HEAD, hidden // heads)
    kv_heads = _size(config, _KV_HEADS, heads)
    if heads % kv_heads or head % 2 or (config.get(_HEAD) is None and hidden % heads):
        raise InputError(
            f"config.json: {heads} heads, {kv_heads} of them with keys, of size {head} do not divide {hidden}"
        )
    layers, inner = _size(config, "num_hidden_layers"), _size(config, "intermediate_size")
    return Dims(layers, hidden, inner, heads, kv_heads, head, _size(config, "vocab_size"))


def _size(config: Mapping[str, Any], key: str, usual: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = usual
    if type(value) is not int or not 1 <= value <= LIMITS[key]:
        raise InputError(f"config.json: {key} is {value!r}, not a number from 1 to {LIMITS[key]}")
    return value


def read_family(metadata: Metadata) -> Architecture:
    """The family that a file says it is of. Raises InputError for one that is not known here."""
    name = metadata.text("general.architecture")
    family = ARCHITECTURES.get(str(name))
    if family is None:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"general.architecture: the family {name!r} is not known here", f"known: {known}")
    return family


def read_config(
    family: Architecture,
    metadata: Metadata,
    vocab: int,
    roles: Mapping[str, int],
    freq_factors: Tensor | None = None,
) -> dict[str, Any]:
    """The config.json of a file, without what only its tensors tell (dtype, biases, tied embeddings).

    `vocab`: how many tokens there are; `roles`: special tokens (see tokens.vocab); `freq_factors` [head/2]:
    `rope_freqs.weight`, if the file has one. Raises InputError.
    """

    def key(name: str) -> str:
        return f"{family.name}.{name}"

    config: dict[str, Any] = {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        "vocab_size": vocab,
        "hidden_act": family.acts[0],
        "initializer_range": 0.02,
        "use_cache": True,
        **family.fixed,
        **{name: roles.get(role) for role, name in _TOKEN_IDS.items()},
    }
    if (name := metadata.text("general.name")) is not None:
        config["_name_or_path"] = name
    for gguf, name in _SIZES:
        config[name] = _required(metadata.integer(key(gguf), 1, LIMITS[name]), key(gguf))
    config |= _read_heads(family, metadata, config)
    epsilon = key(_epsilon(family)[0])
    config[_epsilon(family)[1]] = _required(metadata.number(epsilon), epsilon)
    if family.parallel:
        config[_PARALLEL] = metadata.flag(key(_PARALLEL)) is not False
    if family.no_rope:
        config[_NO_ROPE] = _rotated_layers(family.no_rope, config["num_hidden_layers"])
    head = dims_of(config).head
    return config | _rope_keys(family, _read_rope(family, metadata, head, freq_factors))


def _required(value: Any, key: str) -> Any:
    if value is None:
        raise InputError(f"GGUF metadata lack {key}", "the file is damaged: get another copy")
    return value


def _read_heads(family: Architecture, metadata: Metadata, config: Mapping[str, Any]) -> dict[str, int]:
    """Heads with keys of their own and the size of a head; GPT-NeoX can have neither otherwise than usual."""
    usual = config["hidden_size"] // config[_HEADS]
    lengths = [
        metadata.integer(f"{family.name}.attention.{what}_length", 1, LIMITS[_HEAD]) or usual
        for what in ("key", "value")
    ]
    kv = metadata.integer(f"{family.name}.attention.head_count_kv", 1, LIMITS[_KV_HEADS]) or config[_HEADS]
    if lengths[0] != lengths[1] or (not family.grouped and (lengths[0] != usual or kv != config[_HEADS])):
        raise InputError(f"GGUF metadata: {family.name} models have no heads of sizes {lengths}, {kv} with keys")
    return {_KV_HEADS: kv, _HEAD: lengths[0]} if family.grouped else {}


def _epsilon(family: Architecture) -> tuple[str, str]:
    """The norm's epsilon: GGUF's key and config.json's."""
    return f"attention.layer_norm_{'rms_' if family.rms else ''}epsilon", family.epsilon


def _read_rope(family: Architecture, metadata: Metadata, head: int, freq_factors: Tensor | None) -> Rope:
    prefix = f"{family.name}.rope."
    theta = metadata.number(f"{prefix}freq_base") or 10000.0
    rotated = metadata.integer(f"{prefix}dimension_count", 2, head) or head
    if rotated != head and family.partial_rope is None:
        raise InputError(f"{prefix}dimension_count is {rotated}; {family.name} rotates whole heads of {head}")
    if freq_factors is not None:
        if not family.freq_factors or tuple(freq_factors.shape) != (head // 2,):
            raise InputError(f"rope_freqs.weight: {family.name} with heads of {head} has no such tensor")
        return llama3_rope(theta, freq_factors)
    kind = metadata.text(f"{prefix}scaling.type") or "linear"
    factor = metadata.number(f"{prefix}scaling.factor") or metadata.number(f"{prefix}scale_linear")
    if kind == "none" or factor is None or factor == 1.0:
        return Rope(theta, partial=rotated / head)
    if kind not in ("linear", "yarn"):
        raise InputError(f"{prefix}scaling.type is {kind!r}; known: none, linear, yarn")
    return Rope(theta, kind, {"factor": factor, **_read_yarn(kind, prefix, metadata)}, rotated / head)


def _read_yarn(kind: str, prefix: str, metadata: Metadata) -> dict[str, float]:
    if kind != "yarn":
        return {}
    context = f"{prefix}scaling.original_context_length"
    for name in ("attn_factor", "yarn_attn_factor", "yarn_log_multiplier"):
        if metadata.number(f"{prefix}scaling.{name}") not in (None, 1.0):
            raise InputError(f"{prefix}scaling.{name}: only YaRN's usual attention factor is known here")
    betas = {key: metadata.number(f"{prefix}scaling.{gguf}") for key, gguf in _YARN.items()}
    return {
        "original_max_position_embeddings": _required(metadata.integer(context, 1, (1 << 31) - 1), context),
        **{key: value for key, value in betas.items() if value is not None},
    }


def _rope_keys(family: Architecture, rope: Rope) -> dict[str, Any]:
    keys = rope_config(rope)
    if family.partial_rope is not None:
        keys |= {"rotary_pct": rope.partial, "rotary_emb_base": rope.theta}
        keys["rope_parameters"]["partial_rotary_factor"] = rope.partial
    return keys


def write_config(config: Mapping[str, Any]) -> tuple[dict[str, Value], Rope]:
    """The metadata that a config.json amounts to, and its rotary embedding, which may need a tensor as well.

    Raises RefusedError for what GGUF has no words for, InputError for what is missing or absurd.
    """
    family, dims = family_of(config), dims_of(config)
    for name, value in family.fixed.items():
        if config.get(name, value) != value:
            raise RefusedError(f"config.json: llama.cpp computes {family.name} with {name} = {value!r} only")
    if config.get("hidden_act", family.acts[0]) not in family.acts:
        acts = ", ".join(family.acts)
        raise RefusedError(f"config.json: llama.cpp has no {config['hidden_act']!r} in {family.name}; it has {acts}")
    _check_layers(family, config, dims.layers)
    rope = rope_of(config, family.partial_rope or 1.0)
    pairs: dict[str, Value] = {gguf: uint(_size(config, name)) for gguf, name in _SIZES}
    pairs |= {
        "attention.head_count_kv": uint(dims.kv_heads),
        "attention.key_length": uint(dims.head),
        "attention.value_length": uint(dims.head),
        "vocab_size": uint(dims.vocab),
        _epsilon(family)[0]: real(_written_epsilon(config, _epsilon(family)[1])),
    }
    if family.parallel:
        pairs[_PARALLEL] = flag(bool(config.get(_PARALLEL, True)))
    pairs |= _write_rope(family, rope, dims.head)
    return {f"{family.name}.{name}": value for name, value in pairs.items()}, rope


def _check_layers(family: Architecture, config: Mapping[str, Any], layers: int) -> None:
    """Every layer sees the whole context, and those are rotated that llama.cpp rotates; or RefusedError."""
    window, context = config.get("sliding_window"), _size(config, "max_position_embeddings")
    if (
        window is not None
        and config.get("use_sliding_window", True)
        and not (type(window) is int and window >= context)
    ):
        raise RefusedError(f"config.json: llama.cpp has no sliding window (here {window!r}) in {family.name}")
    rotated = config.get(_NO_ROPE)
    if family.no_rope and rotated is not None and rotated != _rotated_layers(family.no_rope, layers):
        raise RefusedError(f"config.json: llama.cpp leaves every {family.no_rope}th layer of {family.name} unrotated")


def _rotated_layers(step: int, layers: int) -> list[int]:
    """1 for each layer whose queries and keys are rotated, 0 for every `step`th, which has no positions."""
    return [int((layer + 1) % step != 0) for layer in range(layers)]


def _written_epsilon(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"config.json: {key} is {value!r}, not a number between 0 and 1")
    return shortest(value)


def _write_rope(family: Architecture, rope: Rope, head: int) -> dict[str, Value]:
    if rope.partial != 1.0 and family.partial_rope is None:
        raise RefusedError(f"config.json: llama.cpp rotates whole heads in {family.name}")
    if rope.kind == "llama3" and not family.freq_factors:
        raise RefusedError(f"config.json: llama.cpp has no Llama 3 scaling of {family.name}'s positions")
    pairs = {
        "rope.dimension_count": uint(int(rope.partial * head)),
        "rope.freq_base": real(rope.theta),
    }
    if rope.kind in ("linear", "yarn"):
        pairs["rope.scaling.type"] = string(rope.kind)
        pairs["rope.scaling.factor"] = real(rope.scaling["factor"])
    if rope.kind == "yarn":
        context = int(rope.scaling["original_max_position_embeddings"])
        pairs["rope.scaling.original_context_length"] = uint(context)
        pairs |= {f"rope.scaling.{gguf}": real(rope.scaling[key]) for key, gguf in _YARN.items()}
    return pairs
