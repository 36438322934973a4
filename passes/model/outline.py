"""What a plan must know of a model: found by building its skeleton, and kept, for that takes transformers.

It takes three seconds to import, longer than all else that a plan does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from compress.formats.base import Checkpoint, ModelSpec, Origin
from compress.formats.files.kept import code_digest, kept
from compress.formats.views.matrices import Matrices
from compress.passes.model.anatomy import Anatomy, Attention, Heads, LayerAnatomy
from compress.passes.model.positions import Positions

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton


class Known(Protocol):
    """What a plan asks of a model: a skeleton tells it, and so does an outline."""

    @property
    def anatomy(self) -> Anatomy: ...

    @property
    def positions(self) -> Positions | None: ...

    def of_spec(self, spec: ModelSpec, path: Path) -> Known:
        """The same for other headers: itself, unless the configuration or a shape differs."""
        ...


@dataclass(frozen=True)
class Sketch:
    """What is kept. `origins` are those of `Matrices`, None where files keep matrices as they are.

    `parameters` are the tensors that fill the model, by their names in the checkpoint.
    """

    layers: tuple[LayerAnatomy, ...]
    embedding: str
    head: str
    tied: bool
    positions: Positions | None
    parameters: tuple[str, ...]
    origins: dict[str, Origin] | None


class Outline:
    """A model that was built before. Where more is asked than was kept, it is built once more."""

    def __init__(self, files: Checkpoint, sketch: Sketch) -> None:
        self._files = files
        self.source = files if sketch.origins is None else Matrices(files, sketch.origins)
        self.anatomy = Anatomy(sketch.layers, sketch.embedding, sketch.head, sketch.tied, self._attentions, self._heads)
        self.positions = sketch.positions
        self._shapes = {name: self.source.spec.tensors[name].shape for name in sketch.parameters}

    def of_spec(self, spec: ModelSpec, path: Path) -> Known:
        """See `Known`."""
        tensors, same = spec.tensors, dict(spec.config) == dict(self._files.spec.config)
        if same and all(name in tensors and tensors[name].shape == shape for name, shape in self._shapes.items()):
            return self
        return self._skeleton.of_spec(spec, path)

    def _attentions(self) -> tuple[Attention | None, ...]:
        return self._skeleton.attentions()

    def _heads(self) -> tuple[Heads | None, ...]:
        return self._skeleton.heads()

    @cached_property
    def _skeleton(self) -> Skeleton:
        return _open(self._files)[1]


def outline_of(files: Checkpoint, folder: Path | None) -> Outline:
    """The outline of a model, kept in `folder`, if any. Raises what `Skeleton.open` raises."""
    shapes = {name: spec.shape for name, spec in files.spec.tensors.items()}
    key = {
        "config": files.spec.config,
        "shapes": shapes,
        "versions": [version(name) for name in ("torch", "transformers")],
        "code": code_digest(Path(__file__).parent.rglob("*.py")),
    }
    return Outline(files, kept(folder, key, Sketch, lambda: _sketch(files)))


def _sketch(files: Checkpoint) -> Sketch:
    source, skeleton = _open(files)
    anatomy = skeleton.anatomy
    return Sketch(
        layers=anatomy.layers,
        embedding=anatomy.embedding,
        head=anatomy.head,
        tied=anatomy.tied,
        positions=skeleton.positions,
        parameters=tuple(sorted(skeleton.shapes)),
        origins=dict(source.origins) if isinstance(source, Matrices) else None,
    )


def _open(files: Checkpoint) -> tuple[Checkpoint, Skeleton]:
    from compress.passes.model.skeleton import Skeleton

    return Skeleton.open(files, torch.device("cpu"))
