"""config.json from GGUF metadata and GGUF metadata from config.json.

Keys: gguf-py, `gguf/constants.py`, class Keys; config.json gets the keys of transformers 4 and 5 both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from compress.formats.errors import InputError, RefusedError
from compress.formats.files.config_limits import LIMITS
from compress.formats.gguf.families.table import BY_MODEL_TYPE, FAMILIES, named
from compress.formats.gguf.header import Value
from compress.formats.gguf.metadata import MAX_FLOAT, Metadata, flag, real, required, shortest, uint
from compress.formats.gguf.names import Architecture, Dims, Setting
from compress.formats.gguf.rope import Rope, rope_of
from compress.formats.gguf.rope_metadata import read_rope_keys, write_rope

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
_LAYERS = "layer_types"
_SCALED = "query_pre_attn_scalar"
_WINDOW = "sliding_window"
_WINDOWED, _WHOLE, _CHUNKED = "sliding_attention", "full_attention", "chunked_attention"
_SPARSE, _NORMED = "moe_layers", "use_qk_norm"
# What config.json calls a role of the tokenizer.
_TOKEN_IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
_LARGEST = (1 << 31) - 1
_EXPERTS = "num_experts"
_LIMITS = {
    **LIMITS,
    _EXPERTS: 1 << 12,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), LIMITS["intermediate_size"]),
}


def family_of(config: Mapping[str, Any]) -> Architecture:
    """The family of a model with this config.json. Raises RefusedError for one that is not known here."""
    family = BY_MODEL_TYPE.get(str(config.get("model_type")))
    if family is None:
        known = ", ".join(BY_MODEL_TYPE)
        raise RefusedError(f"GGUF: the model type {config.get('model_type')!r} is not known here", f"known: {known}")
    return family


def dims_of(config: Mapping[str, Any]) -> Dims:
    """The sizes in a config.json. Raises InputError for what is missing, absurd, or does not divide."""
    family = BY_MODEL_TYPE.get(str(config.get("model_type")))
    config = family.standard(config) if family else config
    hidden, heads = _size(config, "hidden_size"), _size(config, _HEADS)
    head = _size(config, _HEAD, hidden // heads)
    kv_heads = _size(config, _KV_HEADS, heads) if family is None or family.grouped else heads
    if heads % kv_heads or head % 2 or (config.get(_HEAD) is None and hidden % heads):
        raise InputError(
            f"config.json: {heads} heads, {kv_heads} of them with keys, of size {head} do not divide {hidden}"
        )
    layers, inner = _size(config, "num_hidden_layers"), _size(config, "intermediate_size")
    dims = Dims(layers, hidden, inner, heads, kv_heads, head, _size(config, "vocab_size"))
    dims = replace(dims, context=_size(config, "max_position_embeddings", 1))
    if not (family and family.has_experts):
        return dims
    expert, shared = (_size(config, f"{kind}intermediate_size", inner) for kind in ("moe_", "shared_expert_"))
    return replace(dims, experts=_size(config, _EXPERTS), expert=expert, shared=shared)


def _size(config: Mapping[str, Any], key: str, usual: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = usual
    if type(value) is not int or not 1 <= value <= _LIMITS[key]:
        raise InputError(f"config.json: {key} is {value!r}, not a number from 1 to {_LIMITS[key]}")
    return value


def read_family(metadata: Metadata) -> Architecture:
    """The family that a file says it is of. Raises InputError for one that is not known here."""
    name = str(metadata.text("general.architecture"))
    family = named(name, bool(metadata.integer(f"{name}.expert_count", 0, _LIMITS[_EXPERTS])))
    if family is None:
        known = ", ".join(dict.fromkeys(known.name for known in FAMILIES))
        raise InputError(f"general.architecture: the family {name!r} is not known here", f"known: {known}")
    return family


def read_config(
    family: Architecture,
    metadata: Metadata,
    vocab: int,
    roles: Mapping[str, int],
    factors: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """The config.json of a file, without what only its tensors tell (dtype, biases, tied embeddings).

    `vocab`: how many tokens there are; `roles`: special tokens (see tokens.vocab); `factors` [rotated/2]: the
    tensors that the file has of its rotary embedding, by name. Raises InputError.
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
        config[name] = required(metadata.integer(key(gguf), 1, LIMITS[name]), key(gguf))
    config |= {setting.name: _read_setting(key(setting.gguf), setting, metadata) for setting in family.settings}
    config |= _read_heads(family, metadata, config)
    epsilon = key(_epsilon(family)[0])
    config[_epsilon(family)[1]] = required(metadata.number(epsilon), epsilon)
    if family.parallel:
        config[_PARALLEL] = metadata.flag(key(_PARALLEL)) is not False
    if family.chunked and metadata.integer(key("attention.sliding_window"), 0, _LARGEST) == 0:
        raise InputError(f"{key('attention.sliding_window')} is 0: without chunks {family.name} is not known here")
    config |= _layer_kinds(family, config)
    if not family.rotates:
        return config
    return config | read_rope_keys(family, metadata, config, dims_of(config).head, factors or {})


def own_config(family: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config`, as `read_config` gives it, in the words of the family's own config.json."""
    renamed = {family.renamed.get(name, name): value for name, value in {**config, **family.own(config)}.items()}
    return {name: value for name, value in renamed.items() if name not in family.own(config) or value is not None}


def _read_setting(key: str, setting: Setting, metadata: Metadata) -> float:
    value = metadata.integer(key, 1, _LIMITS.get(setting.name, _LARGEST)) if setting.whole else metadata.number(key)
    return required(setting.usual if value is None else value, key)


def _layer_kinds(family: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says layer by layer, and how attention is scaled where it says so."""
    layers = config["num_hidden_layers"]
    kinds: dict[str, Any] = {}
    if family.no_rope:
        kinds[_NO_ROPE] = _rotated_layers(family.no_rope, layers)
    if family.window:
        kinds[_LAYERS] = _windows(family.window, layers)
    if family.chunked:
        kinds[_LAYERS] = [_CHUNKED if rotated else _WHOLE for rotated in kinds[_NO_ROPE]]
    if family.sparse:
        own = family.own(config)
        kinds |= {name: own[name] for name in (_SPARSE, _NORMED)}
    return kinds | ({_SCALED: _attention_scalar(family, config)} if family.scaled_at else {})


def _attention_scalar(family: Architecture, config: Mapping[str, Any]) -> int:
    """What attention is divided by the root of: a head's size, or, in Gemma 2 and 3 of 27B, hidden over heads."""
    dims = dims_of(config)
    return dims.hidden // dims.heads if dims.layers == family.scaled_at else dims.head


def _windows(period: int, layers: int) -> list[str]:
    """The kind of attention of each layer: every `period`th sees all. llama.cpp: hparams.set_swa_pattern."""
    return [_WHOLE if (layer + 1) % period == 0 else _WINDOWED for layer in range(layers)]


def _read_heads(family: Architecture, metadata: Metadata, config: Mapping[str, Any]) -> dict[str, int]:
    """Heads with keys of their own and the size of a head; GPT-NeoX can have neither otherwise than usual."""
    usual = config["hidden_size"] // config[_HEADS]
    lengths = [
        metadata.integer(f"{family.name}.attention.{what}_length", 1, LIMITS[_HEAD]) or usual
        for what in ("key", "value")
    ]
    kv = metadata.integer(f"{family.name}.attention.head_count_kv", 1, LIMITS[_KV_HEADS]) or config[_HEADS]
    odd = lengths[0] != usual and not family.sized
    if lengths[0] != lengths[1] or odd or (not family.grouped and kv != config[_HEADS]):
        raise InputError(f"GGUF metadata: {family.name} models have no heads of sizes {lengths}, {kv} with keys")
    return {**({_KV_HEADS: kv} if family.grouped else {}), **({_HEAD: lengths[0]} if family.sized else {})}


def _epsilon(family: Architecture) -> tuple[str, str]:
    """The norm's epsilon: GGUF's key and config.json's."""
    return f"attention.layer_norm_{'rms_' if family.rms else ''}epsilon", family.epsilon


def write_config(config: Mapping[str, Any]) -> tuple[dict[str, Value], Rope]:
    """The metadata that a config.json amounts to, and its rotary embedding, which may need a tensor as well.

    Raises RefusedError for what GGUF has no words for, InputError for what is missing or absurd.
    """
    family, dims = family_of(config), dims_of(config)
    config = family.standard(config)
    for name, value in family.fixed.items():
        if config.get(name, value) != value:
            raise RefusedError(f"config.json: llama.cpp computes {family.name} with {name} = {value!r} only")
    if config.get("hidden_act", family.acts[0]) not in family.acts:
        acts = ", ".join(family.acts)
        raise RefusedError(f"config.json: llama.cpp has no {config['hidden_act']!r} in {family.name}; it has {acts}")
    _check_layers(family, config)
    rope = rope_of(config, family.partial_rope or 1.0, family.local_theta)
    pairs: dict[str, Value] = {gguf: uint(_size(config, name)) for gguf, name in _SIZES}
    if window := unseen_window(config):
        pairs["context_length"] = uint(window)
    pairs |= {
        "attention.head_count_kv": uint(dims.kv_heads),
        "attention.key_length": uint(dims.head),
        "attention.value_length": uint(dims.head),
        "vocab_size": uint(dims.vocab),
        _epsilon(family)[0]: real(_written_epsilon(config, _epsilon(family)[1])),
    }
    if family.parallel:
        pairs[_PARALLEL] = flag(bool(config.get(_PARALLEL, True)))
    pairs |= {setting.gguf: _write_setting(setting, config) for setting in family.settings}
    if family.rotates:
        pairs |= write_rope(family, rope, dims.head)
    return {f"{family.name}.{name}": value for name, value in pairs.items()}, rope


def unseen_window(config: Mapping[str, Any]) -> int | None:
    """How many tokens a layer sees of a longer context, where llama.cpp lets it see all; None where that is no matter.

    llama.cpp reads no window in the family (in Phi 3 it reads one, and does not go by it). So far, all answers are the
    model's own, and the file's context is no longer. Raises InputError.
    """
    family, context = family_of(config), _size(config, "max_position_embeddings")
    config = family.standard(config)
    window = config.get(_WINDOW)
    if family.window or window is None or not config.get("use_sliding_window", True):
        return None
    if type(window) is not int or window < 1:
        raise InputError(f"config.json: {_WINDOW} is {window!r}, not a number of tokens")
    return window if window < context else None


def _write_setting(setting: Setting, config: Mapping[str, Any]) -> Value:
    value = config.get(setting.name)
    value = setting.usual if value is None else value
    kinds = int if setting.whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value <= MAX_FLOAT:
        raise InputError(f"config.json: {setting.name} is {value!r}, not a positive {'whole ' * setting.whole}number")
    return uint(int(value)) if setting.whole else real(shortest(value))


def _check_layers(family: Architecture, config: Mapping[str, Any]) -> None:
    """Every layer sees all that llama.cpp lets it see, and those are rotated that it rotates; or RefusedError."""
    usual = _layer_kinds(family, config)
    for name in (_NO_ROPE, _LAYERS, _SCALED, _SPARSE, _NORMED):
        if name in usual and config.get(name) not in (None, usual[name]):
            raise RefusedError(f"config.json: llama.cpp computes {family.name} with {name} = {usual[name]} only")
    layers = config["num_hidden_layers"]
    if flags := {slot.when for slot in family.block if layers < slot.least and config.get(slot.when)}:
        raise RefusedError(f"config.json: llama.cpp knows {min(flags)} in larger models of {family.name} only")
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
    if family.window and pattern not in (None, family.window) and config.get(_LAYERS) is None:
        raise RefusedError(f"config.json: in {family.name} llama.cpp lets every {family.window}th layer see all")


def _rotated_layers(step: int, layers: int) -> list[int]:
    """1 for each layer whose queries and keys are rotated, 0 for every `step`th, which has no positions."""
    return [int((layer + 1) % step != 0) for layer in range(layers)]


def _written_epsilon(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"config.json: {key} is {value!r}, not a number between 0 and 1")
    return shortest(value)
