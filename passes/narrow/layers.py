"""A model with fewer decoder layers: their names are numbered anew, and config.json counts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.anatomy import Anatomy, LayerAnatomy
from compress.passes.model.config import config_of
from compress.passes.narrow.influence import influence
from compress.passes.sweep.calibrated import calibration_walk

_SETTINGS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configurations call their number."""


class Influence(Committed):
    """How far the layer before `boundary` turns the hidden states."""

    boundary: int
    value: float


def influences(run: Run, stage: Stage) -> list[float]:
    """The block influence of every layer on the calibration sequences. What was committed is taken over."""
    layers, done = run.skeleton.anatomy.layers, run.journal.of(Influence, stage.key)
    walk = calibration_walk(run, stage, ())
    run.reporter.start(stage.title, len(layers), "layer", done=len(done))

    def commit(boundary: int) -> None:
        value = influence(walk, boundary)
        run.journal.append(Influence(stage=stage.key, boundary=boundary, value=value))
        run.reporter.advance(layers[boundary - 1].name)

    with torch.no_grad():
        walk.carry(len(done), commit)
    run.reporter.finish()
    return [record.value for record in run.journal.of(Influence, stage.key)]


def strongest(values: Sequence[float], count: int) -> list[int]:
    """The indices, ascending, of the `count` largest; of two that are alike the earlier goes."""
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    return sorted(order[len(order) - count :])


def prefixes(anatomy: Anatomy) -> tuple[str, ...]:
    """How the names of each layer's tensors begin in the checkpoint, with a dot at the end."""
    return tuple(_prefix(layer) for layer in anatomy.layers)


def fewer(model: ModelSpec, anatomy: Anatomy, count: int) -> ModelSpec:
    """The headers with `count` layers: the first ones', for all are alike. Raises RefusedError if they are not."""
    _refuse_differences(model, anatomy)
    settings = _settings(model.config, len(anatomy.layers))
    if not settings:
        raise RefusedError(
            f"config.json says nowhere that there are {len(anatomy.layers)} layers ({', '.join(_SETTINGS)})",
            "a model with fewer could not be loaded; leave layers out",
        )
    lists = {key: value[:count] for key, value in _one_a_layer(model.config, len(anatomy.layers)).items()}
    gone = prefixes(anatomy)[count:]
    tensors = (
        {name: spec for name, spec in model.tensors.items() if not name.startswith(gone)} if gone else model.tensors
    )
    return replace(model, config={**model.config, **dict.fromkeys(settings, count), **lists}, tensors=tensors)


def renumbered(model: ModelSpec, anatomy: Anatomy, kept: Sequence[int]) -> dict[str, str]:
    """The tensors of `model` with the layers `kept` alone, by their new names: what they were called."""
    all_of_them = prefixes(anatomy)
    outside = {name: name for name in model.tensors if not name.startswith(all_of_them)}
    moved = {
        all_of_them[new] + name.removeprefix(all_of_them[old]): name
        for new, old in enumerate(kept)
        for name in model.tensors
        if name.startswith(all_of_them[old])
    }
    return {**outside, **moved}


def _prefix(layer: LayerAnatomy) -> str:
    found = {stored.removesuffix(local) for stored, local in layer.modules.items() if stored.endswith(f".{local}")}
    if len(found) != 1:
        raise RefusedError(f"{layer.name}: its tensors have names that do not begin alike", "leave layers out")
    return found.pop()


def _refuse_differences(model: ModelSpec, anatomy: Anatomy) -> None:
    shapes = [dict(_inside(model, prefix)) for prefix in prefixes(anatomy)]
    for layer, own in zip(anatomy.layers, shapes):
        if own != shapes[0]:
            raise RefusedError(
                f"{layer.name} has other tensors or shapes than {anatomy.layers[0].name}",
                "only layers that are alike can go; leave layers out",
            )
    # With what the file leaves to transformers, as Gemma's `layer_types`.
    lists = _one_a_layer(config_of(model.config, Path(model.name)).get_text_config().to_dict(), len(anatomy.layers))
    turns = [key for key, value in lists.items() if any(each != value[0] for each in value)]
    if turns:
        raise RefusedError(
            f"layers are of several kinds and take turns ({', '.join(turns)} in config.json), which engines count on",
            "leave layers out, and narrow them with ffn or kv_heads",
        )


def _inside(model: ModelSpec, prefix: str) -> Iterator[tuple[str, TensorSpec]]:
    for name, spec in model.tensors.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), replace(spec, origin=None)


def _settings(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    return tuple(key for key in _SETTINGS if config.get(key) == count)


def _one_a_layer(config: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    return {key: value for key, value in config.items() if isinstance(value, list) and len(value) == count > 1}
