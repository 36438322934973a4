"""Rotary position embeddings as both generations of config.json and as GGUF say them.

transformers 4 writes `rope_theta` and `rope_scaling` (GPT-NeoX: `rotary_emb_base`, `rotary_pct`),
transformers 5 one dictionary `rope_parameters`. GGUF has `<family>.rope.freq_base`, `.rope.scaling.*`,
`.rope.dimension_count`, and for Llama 3 a tensor `rope_freqs.weight` by which frequencies are divided; for
LongRoPE there are two, of which llama.cpp takes one by the length of its context.
The formulas of both: transformers, `modeling_rope_utils._compute_llama3_parameters`, `_compute_longrope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.metadata import MAX_FLOAT

_OLD_CONTEXT = "original_max_position_embeddings"
_KNOWN = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", _OLD_CONTEXT),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _OLD_CONTEXT),
    "longrope": (_OLD_CONTEXT,),
}
_RENAMED = {"su": "longrope"}
FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_FULL, _LOCAL = "full_attention", "sliding_attention"
_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0}
_LOW, _HIGH, _CONTEXT = 1.0, 4.0, 8192  # of every Llama 3 file; only their ratios can be told from a tensor
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Rope:
    """`kind` is a rope_type of transformers; `scaling` what it takes besides; `partial` the part rotated.

    `long` and `short` are LongRoPE's divisors, `attention` what it multiplies queries and keys by; `local` is the
    base in layers with a sliding window, if it is one of its own.
    """

    theta: float = 10000.0
    kind: str = "default"
    scaling: Mapping[str, float] = field(default_factory=dict)
    partial: float = 1.0
    long: tuple[float, ...] = ()
    short: tuple[float, ...] = ()
    attention: float = 1.0
    local: float | None = None

    def tensors(self, head: int) -> dict[str, Tensor]:
        """What GGUF holds of it as tensors, fp32 [rotated/2], by name; `head` is the size of a head."""
        if self.kind == "llama3":
            return {FREQS: llama3_factors(self, head)}
        if self.kind == "longrope":
            return {LONG: torch.tensor(self.long), SHORT: torch.tensor(self.short)}
        return {}


def rope_of(config: Mapping[str, Any], partial: float = 1.0, local: float | None = None) -> Rope:
    """What `config` says, in either generation's keys; `partial` is the family's default part, `local` its base in
    layers with a window.

    Raises RefusedError for a kind of scaling that GGUF has no words for.
    """
    merged = {**_object(config, "rope_scaling"), **_object(config, "rope_parameters")}
    if local is not None:
        local, merged = _local(config, merged, local)
    if any(isinstance(value, dict) for value in merged.values()):
        raise RefusedError("config.json: layers differ in their rotary embeddings; GGUF has words for one only")
    kind = str(merged.get("rope_type", merged.get("type", "default")))
    kind = _RENAMED.get(kind, kind)
    if kind not in _KNOWN:
        raise RefusedError(f"config.json: GGUF has no words for the rope type {kind!r}", f"it has: {', '.join(_KNOWN)}")
    theta = _first(merged, config, ("rope_theta", "rotary_emb_base"), 10000.0)
    part = _first(merged, config, ("partial_rotary_factor", "rotary_pct"), partial)
    scaling = _scaling(kind, merged, config)
    if kind != "longrope":
        return Rope(theta, kind, scaling, part, local=local)
    long, short = (_divisors(merged, name) for name in ("long_factor", "short_factor"))
    return Rope(theta, kind, scaling, part, long, short, _long_attention(merged, config, scaling))


def _local(config: Mapping[str, Any], merged: Mapping[str, Any], usual: float) -> tuple[float, dict[str, Any]]:
    """The base in layers with a window, and the parameters of the others."""
    given = merged.get(_LOCAL, {})
    if not isinstance(given, dict) or given.get("rope_type", "default") != "default":
        raise RefusedError("config.json: llama.cpp scales no positions in layers with a sliding window")
    theta = _first(given, {"rope_theta": config.get("rope_local_base_freq")}, ("rope_theta",), usual)
    return theta, {
        **merged.get(_FULL, {}),
        **{key: value for key, value in merged.items() if key not in (_FULL, _LOCAL)},
    }


def _divisors(merged: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = merged.get(key)
    if not isinstance(values, list) or not values:
        raise InputError(f"config.json: rope type 'longrope' lacks {key}")
    return tuple(_number(value, key) for value in values)


def _long_attention(merged: Mapping[str, Any], config: Mapping[str, Any], scaling: Mapping[str, float]) -> float:
    """What queries and keys are multiplied by: as given, else by how much longer the context has become."""
    if merged.get("attention_factor") is not None:
        return _number(merged["attention_factor"], "attention_factor")
    return long_attention(_number(config.get("max_position_embeddings"), "max_position_embeddings"), scaling)


def long_attention(context: float, scaling: Mapping[str, float]) -> float:
    """LongRoPE's usual factor for a model of so long a `context`."""
    old = scaling[_OLD_CONTEXT]
    if old <= 1:
        raise InputError(
            f"LongRoPE of a model that was trained on {old:g} positions", "see the model's own config.json"
        )
    return math.sqrt(1 + math.log(context / old) / math.log(old)) if context > old else 1.0


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"config.json: {key} is not an object")
    return value


def _first(merged: Mapping[str, Any], config: Mapping[str, Any], keys: tuple[str, ...], default: float) -> float:
    found = (place[key] for place in (merged, config) for key in keys if place.get(key) is not None)
    return _number(next(found, default), keys[0])


def _scaling(kind: str, merged: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    scaling = {key: _number(merged[key], key) for key in _KNOWN[kind] if merged.get(key) is not None}
    if kind == "yarn":
        scaling |= {key: _number(merged.get(key) or usual, key) for key, usual in _YARN_DEFAULTS.items()}
        _check_yarn(merged, scaling.get("factor", 1.0))
    if _OLD_CONTEXT in _KNOWN[kind]:
        usual = config.get(_OLD_CONTEXT) or config.get("max_position_embeddings")
        scaling.setdefault(_OLD_CONTEXT, _number(usual, "max_position_embeddings"))
    missing = [key for key in _KNOWN[kind] if key not in scaling]
    if missing:
        raise InputError(f"config.json: rope type {kind!r} lacks {', '.join(missing)}")
    return scaling


def _check_yarn(merged: Mapping[str, Any], factor: float) -> None:
    """llama.cpp computes YaRN's attention factor itself, the usual way, and where its range begins and ends."""
    for key, value in _YARN_DEFAULTS.items():
        if merged.get(key) not in (None, value):
            raise RefusedError(f"config.json: llama.cpp computes YaRN with {key} = {value} only, not {merged[key]!r}")
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    given = merged.get("attention_factor")
    unusual = given is not None and abs(_number(given, "attention_factor") - usual) > _TOLERANCE
    if unusual or any(merged.get(key) is not None for key in ("mscale", "mscale_all_dim")):
        raise RefusedError("config.json: GGUF has no words for an attention factor of YaRN's other than the usual")


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_FLOAT:
        raise InputError(f"config.json: {key} is a positive number, not {value!r}")
    return float(value)


def rope_config(rope: Rope) -> dict[str, Any]:
    """The keys of config.json in both generations, but for version 4's `rotary_pct`."""
    numbers = {key: int(value) if key == _OLD_CONTEXT else value for key, value in rope.scaling.items()}
    scaling: dict[str, Any] = {"rope_type": rope.kind, **numbers}
    if rope.kind == "longrope":
        scaling |= {"long_factor": list(rope.long), "short_factor": list(rope.short)}
    part = {} if rope.partial == 1.0 else {"partial_rotary_factor": rope.partial}
    parameters: dict[str, Any] = {"rope_theta": rope.theta, **part, **scaling}
    local: dict[str, Any] = {}
    if rope.local is not None:
        parameters = {_FULL: parameters, _LOCAL: {"rope_theta": rope.local, "rope_type": "default"}}
        local = {"rope_local_base_freq": rope.local}
    return {
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.kind == "default" else scaling,
        "rope_parameters": parameters,
        **local,
    }


def llama3_factors(rope: Rope, head: int) -> Tensor:
    """fp32 [head/2], what each frequency of a head is divided by under Llama 3's scaling."""
    scaling = rope.scaling
    turns = scaling[_OLD_CONTEXT] / _wavelengths(rope.theta, head)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = ((turns - low) / max(high - low, 1e-9)).clamp(0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)).float()


def _wavelengths(theta: float, head: int) -> Tensor:
    """Positions that a full turn of each frequency takes: fp64 [head/2]."""
    return 2.0 * math.pi * theta ** (torch.arange(0, head, 2, dtype=torch.float64) / head)


def llama3_rope(theta: float, factors: Tensor) -> Rope:
    """The Llama 3 scaling whose `llama3_factors` are `factors` [head/2].

    Only the ratios of low factor, high factor and old context show in the factors: 1 and 4, which every
    Llama 3 has, are assumed. Raises InputError if no such scaling gives these factors.
    """
    head = 2 * len(factors)
    factor = float(factors.max())
    if factor <= 1.0 + _TOLERANCE and float(factors.min()) >= 1.0 - _TOLERANCE:
        return Rope(theta)
    inner = (factors > 1.0 + _TOLERANCE) & (factors < factor * (1.0 - _TOLERANCE))
    context = float(_CONTEXT)
    if bool(inner.any()):
        at = int(inner.nonzero()[0])
        smooth = (1.0 / float(factors[at]) - 1.0 / factor) / (1.0 - 1.0 / factor)
        context = float(round((smooth * (_HIGH - _LOW) + _LOW) * float(_wavelengths(theta, head)[at])))
    scaling = {
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        _OLD_CONTEXT: context,
    }
    rope = Rope(theta, "llama3", scaling)
    if not torch.allclose(llama3_factors(rope, head), factors.float(), rtol=_TOLERANCE, atol=0.0):
        raise InputError("rope_freqs.weight: these are not the frequency factors of a Llama 3 scaling")
    return rope
