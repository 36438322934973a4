"""The static scales of what is rounded at run time: which tensors they are, and reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError

_CACHE = (".k_scale", ".v_scale")


def runtime_scales(model: ModelSpec) -> frozenset[str]:
    """The names of the static scales of inputs and cache."""
    inputs = {f"{module}.input_scale" for module, found in model.activations.items() if not found.dynamic}
    cache = {name for name in model.tensors if model.kv_cache and name.endswith(_CACHE)}
    return frozenset(inputs | cache)


def with_runtime_scales(model: ModelSpec, where: object) -> ModelSpec:
    """`model`, read from `where`, with the specs that static scales have in the program: float32, flat.

    Raises InputError, by name, for scales that are missing or have another shape.
    """
    names = runtime_scales(model)
    flat = {name: _flat(name, model, where) for name in sorted(names)}
    if model.kv_cache and not any(name.endswith(_CACHE) for name in names):
        raise InputError(f"{where} rounds the key/value cache, and has no scales for it")
    for name in names:
        if name.endswith(_CACHE) and not {name[: -len(kind)] + kind for kind in _CACHE} <= names:
            raise InputError(f"{where} holds {name} without its counterpart for keys or values")
    tensors: Mapping[str, TensorSpec] = {name: flat.get(name, spec) for name, spec in model.tensors.items()}
    return replace(model, tensors=tensors)


def _flat(name: str, model: ModelSpec, where: object) -> TensorSpec:
    spec = model.tensors.get(name)
    if spec is None:
        raise InputError(f"{where} has no tensor {name}, though it rounds with a static scale")
    per_head = model.kv_cache and model.kv_cache.per == "head" and name.endswith(_CACHE)
    if not spec.dtype.startswith(("float", "bfloat")) or not (spec.size == 1 or (per_head and spec.size)):
        raise InputError(f"{where}: {name} is {list(spec.shape)} {spec.dtype}, which is not a scale")
    return TensorSpec((spec.size,), "float32")


def flat_scale(name: str, scale: Tensor) -> Tensor:
    """A stored scale as float32, flat. Raises InputError, by name, for one that is not positive."""
    values = scale.float().reshape(-1)
    if float(values.min()) <= 0:
        raise InputError(f"{name} is {float(values.min()):g}; a scale is positive")
    return values
