"""What a compressed-tensors artifact says of itself: `quantization_config` in config.json.

`config_groups` are schemes with their `targets`: the class name `Linear`, or full names of layers; `ignore`
are layers that a class name does not mean. Engines also take regular expressions (`re:…`). We write none, and
run none that stands in a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compress.formats.base import ModelSpec
from compress.formats.compressed_tensors.schemes import Scheme, cache_json, read_scheme, storages
from compress.formats.compressed_tensors.storage import Storage
from compress.formats.errors import InputError
from compress.formats.views.linear_names import is_linear

METHOD = "compressed-tensors"
_MIXED = "mixed-precision"
_DENSE = "dense"  # llm-compressor's word where the cache alone is quantized
_VERSION = "0.20.0"  # of the library that the files were checked with
_EVERY_LINEAR = "Linear"
_HEAD = "lm_head"


@dataclass(frozen=True)
class Group:
    """One entry of `config_groups`."""

    scheme: Scheme
    storage: Storage
    targets: frozenset[str]


def schemes_of(model: ModelSpec) -> dict[str, Scheme]:
    """The scheme of every quantized linear layer, by module name."""
    return {
        module: Scheme(spec.format, model.activations.get(module))
        for name, spec in model.tensors.items()
        if spec.format is not None
        for module in [name.removesuffix(".weight")]
    }


def inputs_alone(model: ModelSpec) -> str | None:
    """Which layer rounds its inputs and keeps its weight, as no container says; None if none does."""
    schemes = schemes_of(model)
    for module, inputs in model.activations.items():
        if module not in schemes:
            return f"{module} rounds its inputs ({inputs.name}) and stays dense: quantize its weight as well"
    return None


def quantization_config(model: ModelSpec) -> dict[str, Any]:
    """The `quantization_config` of a model that fits."""
    schemes = schemes_of(model)
    modules: dict[Scheme, list[str]] = defaultdict(list)
    for module, scheme in schemes.items():
        modules[scheme].append(module)
    stacked = any(spec.format is None and len(spec.shape) > 2 for spec in model.tensors.values())
    if len(modules) == 1 and not stacked:
        modules = defaultdict(list, {scheme: [_EVERY_LINEAR] for scheme in modules})
    formats = {scheme.format for scheme in modules} or {_DENSE}
    return {
        "config_groups": {
            f"group_{index}": scheme.json(targets) for index, (scheme, targets) in enumerate(modules.items())
        },
        "format": formats.pop() if len(formats) == 1 else _MIXED,
        "global_compression_ratio": None,
        "ignore": list(_ignored(model, schemes)) if schemes else [],
        "kv_cache_scheme": cache_json(model.kv_cache),
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "version": _VERSION,
    }


def _ignored(model: ModelSpec, schemes: Mapping[str, Scheme]) -> Iterator[str]:
    """The linear layers that stayed dense; a head that is tied has no tensor of its own."""
    for name, spec in model.tensors.items():
        if spec.format is None and len(spec.shape) == 2 and is_linear(name):
            yield name.removesuffix(".weight")
    if _HEAD not in schemes and f"{_HEAD}.weight" not in model.tensors:
        yield _HEAD


def read_groups(settings: Mapping[str, Any], where: object) -> list[Group]:
    """`config_groups`, checked; there need be none beside a quantized cache.

    Raises InputError for what changes values in ways that are not read.
    """
    if settings.get("quantization_status", "compressed") != "compressed":
        raise InputError(
            f"{where}: its weights are not compressed (quantization_status: "
            f"{str(settings['quantization_status'])[:40]!r})",
            "save the model with save_compressed=True",
        )
    for key in ("sparsity_config", "transform_config"):
        if settings.get(key):
            raise InputError(f"{where} has a {key}, which is not read")
    found = settings.get("config_groups")
    if not found and settings.get("kv_cache_scheme"):
        return []
    if not isinstance(found, dict) or not found:
        raise InputError(f"{where} has no config_groups")
    return [_read_group(group, settings.get("format"), f"{where}: {str(key)[:40]}") for key, group in found.items()]


def _read_group(found: Any, default: Any, where: str) -> Group:
    if not isinstance(found, dict):
        raise InputError(f"{where} is not a JSON object", "presets by name are not read: write the scheme out")
    targets = found.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InputError(f"{where}: targets is not a list of names")
    scheme = read_scheme(found, where)
    stored, known = found.get("format") or default, storages(scheme.number_format)
    if not isinstance(stored, str) or stored not in known:
        raise InputError(f"{where} is stored as {str(stored)[:40]!r}; what is read of it is {', '.join(known)}")
    return Group(scheme, known[stored], frozenset(targets))
