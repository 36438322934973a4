"""The attention heads of every decoder layer, in groups that share a head of keys and values: these go whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.formats.base import ModelSpec
from compress.formats.errors import InputError, RefusedError
from compress.passes.model.anatomy import Anatomy, Heads
from compress.passes.model.config import config_of
from compress.passes.narrow.inner import Inner

_COUNT, _KEPT, _WIDTH = "num_attention_heads", "num_key_value_heads", "head_dim"


def find_heads(
    model: ModelSpec, anatomy: Anatomy, option: str, extents: Callable[[Heads], set[int]]
) -> tuple[Heads, ...]:
    """The heads of each layer, for an `option` that changes them.

    Raises RefusedError where they are not known, and for a tensor of a kind not known here one of whose `extents` goes
    with the heads.
    """
    found = []
    for layer, heads in zip(anatomy.layers, anatomy.heads()):
        if heads is None:
            raise RefusedError(
                f"{layer.name} has no linears q, k and v with one head after the other in their rows",
                f"joined matrices, latent attention (MLA) and layers without attention keep theirs; leave {option} out",
            )
        _refuse_others(model, heads, extents(heads), option)
        found.append(heads)
    return tuple(found)


def tensors_of(model: ModelSpec, heads: Heads) -> tuple[str, ...]:
    """All that changes with the heads of a layer: what gives queries, keys and values, and what reads the output."""
    return (*linears_of(model, heads.queries, heads.keys, heads.values), f"{heads.output}.weight")


def linears_of(model: ModelSpec, *modules: str) -> tuple[str, ...]:
    """Weights and biases, those that there are."""
    names = (f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias"))
    return tuple(name for name in names if name in model.tensors)


def find_groups(model: ModelSpec, anatomy: Anatomy) -> tuple[Inner, ...]:
    """Those of each layer: as many units as there are heads of keys. Raises RefusedError where none can go."""
    found = find_heads(model, anatomy, "kv_heads", _extents)
    kinds = {(heads.count, heads.kept, heads.width) for heads in found}
    if len(kinds) > 1 or model.config.get(_COUNT) != found[0].count:
        raise RefusedError(
            f"config.json has no {_COUNT} for all layers, which have {sorted(count for count, _, _ in kinds)} heads",
            "a model with fewer could not be loaded; leave kv_heads out",
        )
    return tuple(Inner((heads.queries, heads.keys, heads.values), heads.output, heads.kept) for heads in found)


def with_groups(model: ModelSpec, anatomy: Anatomy, groups: Sequence[Inner], kept: int) -> ModelSpec:
    """The headers with `kept` groups in every layer. Raises RefusedError where the model's own code takes no such."""
    heads = next(heads for heads in anatomy.heads() if heads)
    settings = {_COUNT: kept * heads.sharing, _KEPT: kept, _WIDTH: heads.width}
    config = {**model.config, **{key: settings[key] for key in settings if key != _KEPT or _takes_kept(model, heads)}}
    try:
        made = config_of(config, Path(model.name))
    except InputError as error:
        fitting = [count for count in range(1, heads.kept) if _hidden(model) % (count * heads.sharing) == 0]
        raise RefusedError(
            f"shrink: {settings[_COUNT]} heads of attention: {error}",
            f"say kv_heads: {' or '.join(map(str, fitting))}" if fitting else "leave kv_heads out",
        ) from error
    if getattr(made, _WIDTH, None) != heads.width:
        raise RefusedError(
            f"{model.config.get('model_type')} has no {_WIDTH} of its own: fewer heads would be wider",
            "leave kv_heads out",
        )
    tensors = {name: spec for group in groups for name, spec in group.resized(model, kept).items()}
    return replace(model, config=config, tensors={**model.tensors, **tensors})


def _takes_kept(model: ModelSpec, heads: Heads) -> bool:
    return heads.sharing > 1 or _KEPT in model.config


def _hidden(model: ModelSpec) -> int:
    hidden: Any = model.config.get("hidden_size")
    return hidden if isinstance(hidden, int) else 1


def _extents(heads: Heads) -> set[int]:
    """What an axis with a value for each head, or for each row of all, is long."""
    return {count * width for count in (heads.count, heads.kept) for width in (1, heads.width)} - {1, heads.width}


def _refuse_others(model: ModelSpec, heads: Heads, extents: set[int], option: str) -> None:
    """Raise RefusedError for another tensor of the attention that has one of `extents`."""
    beside, known = f"{heads.keys.rpartition('.')[0]}.", {*tensors_of(model, heads), f"{heads.output}.bias"}
    for name, spec in model.tensors.items():
        if name.startswith(beside) and name not in known and extents.intersection(spec.shape):
            raise RefusedError(
                f"{name} has a value for each head, or for each row of all heads together, of a kind not known here",
                f"leave {option} out",
            )
