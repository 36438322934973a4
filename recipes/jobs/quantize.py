"""`compress quantize`: a recipe for who has none, from a model, a method and the containers that are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml as plain_yaml

from compress import passes
from compress.formats import summaries
from compress.formats.errors import UsageError, suggest
from compress.passes.core.linear import LinearPass
from compress.recipes.recipe import Recipe, build, default_output, from_data
from compress.recipes.yaml import parse

_BITS = 4
_BEST = {"gptq": {"correct": True, "tune": True}}
"""What a method is at its best with; it costs time, and no bytes."""
_REST = {"gguf": {"type": "q8_0"}}
"""How a container is to hold what the method leaves dense."""
_BLOCK = 32
"""Columns that share a scale in GGUF's blocks whatever the group size: a larger group saves no byte there."""
_TEXT = {"samples": 128, "seq_len": 512}
_HELD_OUT = {"data": "builtin", "samples": 8, "seq_len": 512}


def recipe_text(
    model: str,
    containers: Sequence[str],
    *,
    method: str = "gptq",
    bits: int | None = None,
    group_size: int | None = None,
    data: str = "builtin",
) -> str:
    """The recipe as YAML. `bits` are 4 where the method takes them and none are given.

    Raises UsageError, with the nearest name, for a method or a container that there is not, and for bits or a group
    size that the method has no choice of.
    """
    for name in containers:
        if name not in summaries():
            raise UsageError(f"--to: there is no container '{name}'{suggest(name, summaries())}")
    kind = _method(method)
    if group_size is None and set(containers) == {"gguf"}:
        group_size = _BLOCK if "group_size" in kind.model_fields else None
    options = {**_asked(kind, method, {"bits": bits, "group_size": group_size}), **_BEST.get(method, {})}
    steps: list[dict[str, Any]] = [{method: options}]
    (step,) = from_data({"model": model, "passes": steps}).passes
    if isinstance(step, LinearPass) and step.needs():
        steps.insert(0, {"calibrate": {"data": data, **_TEXT}})
    exports = [{"export": {"dialect": name, **_REST.get(name, {})}} for name in dict.fromkeys(containers)]
    recipe = {"model": model, "passes": [*steps, {"evaluate": _HELD_OUT}, *exports]}
    return plain_yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def recipe_of(text: str) -> Recipe:
    """The recipe that stands in such a text."""
    return build(parse(text, "recipe"))


def folder_of(recipe: Recipe) -> Path:
    """Where it is written by default: each model, method and number of bits has a folder of its own."""
    step = next(step for step in recipe.passes if isinstance(step, LinearPass))
    bits = getattr(step, "bits", None)
    base = default_output("-", recipe)
    return base.with_name("-".join([base.name, step.name, *([f"{bits}bit"] if bits else [])]))


def _method(name: str) -> type[LinearPass]:
    kinds = {found: passes.get(found) for found in passes.names()}
    methods = {found: kind for found, kind in kinds.items() if issubclass(kind, LinearPass)}
    if name not in methods:
        raise UsageError(f"--method: there is no method '{name}'{suggest(name, methods)}")
    return methods[name]


def _asked(kind: type[LinearPass], method: str, options: dict[str, int | None]) -> dict[str, int]:
    """Those of the options that were given, and the bits where there is a choice of them."""
    for option, value in options.items():
        if value is not None and option not in kind.model_fields:
            flag = "--" + option.replace("_", "-")
            raise UsageError(f"{flag}: {method} has no choice of it", f"leave {flag} out: compress passes {method}")
    default = {"bits": _BITS} if "bits" in kind.model_fields else {}
    return default | {option: value for option, value in options.items() if value is not None}
