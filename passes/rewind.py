"""Rewinding: weights go back to the values that they came with, and zeros of what was pruned stay.

So do norms, embeddings and whatever else training moved: what is left of it is which weights were kept, the "winning
ticket" that training then begins from (Frankle & Carbin, arXiv 1803.03635). Where a stage changed shapes, weights go
back to what that stage made of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.formats.files.native import save_tensors
from compress.formats.files.storage import sha256_file
from compress.passes.core.base import ModelPass
from compress.passes.core.journal import Committed
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import decoded

_ENDS = "ends"


class Rewound(Committed):
    """What a layer, or what stands outside of layers, went back to lies in `file`."""

    unit: str
    file: str
    sha256: str
    tensors: tuple[str, ...]


class Rewind(ModelPass):
    """Give weights back the values that they came with; what was pruned stays so. Before another training."""

    reshapes: ClassVar[bool] = False

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        quantized = sorted(name for name, spec in model.tensors.items() if spec.format is not None)
        if quantized:
            raise RefusedError(
                f"rewind: {quantized[0]} was quantized by an earlier pass, and would be so no more",
                "move rewind before the pass that quantizes",
            )
        return model

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        return {"to": "what it came with"}

    def model(self, run: Run, stage: Stage) -> Outcome:
        done = {record.unit for record in run.journal.of(Rewound, stage.key)}
        units = _units(run)
        run.reporter.start(stage.title, len(units), "layer", done=len(done))
        for number, (unit, names) in enumerate(units.items()):
            if unit not in done:
                _commit(run, stage, unit, number, {name: _rewound(run, name) for name in names})
                run.reporter.advance(unit)
        run.reporter.finish()
        for record in run.journal.of(Rewound, stage.key):
            run.model.overlay(stage.file(record.file))
        authors = {name: f"{author} + {stage.title}" for name, author in run.left.authors.items()}
        return Outcome(authors=authors)


def _units(run: Run) -> dict[str, list[str]]:
    """What was rewritten since, layer by layer, and what stands outside of layers."""
    there = run.untouched.spec.tensors
    units: dict[str, list[str]] = {}
    for name in sorted(run.model.rewritten & there.keys()):
        layers = (layer.name for layer in run.skeleton.anatomy.layers if name.startswith(f"{layer.name}."))
        units.setdefault(next(layers, _ENDS), []).append(name)
    return units


def _rewound(run: Run, name: str) -> Tensor:
    """A tensor as it came; where it was pruned, 0."""
    value = run.untouched.read(name)
    assert isinstance(value, Tensor)  # a model that comes quantized is decoded where anything prunes
    if name.removesuffix(".weight") not in run.model.spec.pruned:
        return value
    return torch.where(decoded(run.model.read(name)) != 0, value, torch.zeros_like(value))


def _commit(run: Run, stage: Stage, unit: str, number: int, tensors: Mapping[str, Tensor]) -> None:
    path = stage.file(f"unit-{number:04d}.safetensors")
    save_tensors(path, tensors)
    digest = sha256_file(path)
    run.journal.append(Rewound(stage=stage.key, unit=unit, file=path.name, sha256=digest, tensors=tuple(tensors)))
