"""Containers that store one quantized weight as several tensors beside each other: `X.weight` as `X.qweight`, …"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec, Progress, TensorSpec
from compress.formats.directory.base import InDirectory
from compress.formats.errors import RefusedError
from compress.formats.files.carried import write_files
from compress.formats.files.hf_config import QUANTIZATION
from compress.formats.files.hf_files import dtype_change, edit_config
from compress.formats.files.safetensors.shards import Shards, write_shards
from compress.formats.views.casting import FloatType, cast, stored_as
from compress.formats.views.places import quantizes_head
from compress.formats.views.runtime_scales import runtime_scales
from compress.formats.views.untied import TIED
from compress.kernels.qtensor import QTensor

T = TypeVar("T")
Parts = Mapping[str, TensorSpec]  # stored name → spec


class InParts(InDirectory):
    """A subclass says what a quantized weight is stored as, and what the configuration says of it."""

    label: ClassVar[str]
    """What its users call its files."""

    @abstractmethod
    def parts(self, name: str, spec: TensorSpec, model: ModelSpec) -> dict[str, TensorSpec]:
        """The tensors that the quantized weight `name` is stored as: name below the layer's → spec."""

    @abstractmethod
    def encode(self, name: str, tensor: QTensor, model: ModelSpec) -> dict[str, Tensor]:
        """The tensors themselves. Raises RefusedError, by name, for values that they cannot hold."""

    @abstractmethod
    def settings(self, model: ModelSpec) -> dict[str, Any]:
        """The `quantization_config` of a model that fits."""

    def dense_dtype(self, model: ModelSpec) -> FloatType:
        """What is stored as it is, and what engines compute in."""
        assert self.dtype is not None  # or a subclass chooses
        return self.dtype

    def runtime_scale(self, name: str, model: ModelSpec) -> tuple[str, TensorSpec]:
        """What a static scale of inputs or cache is stored as: its name in the files, its spec."""
        return name, model.tensors[name]

    def changes(self, model: ModelSpec) -> dict[str, Any]:
        """What the model's `config.json` is changed to say."""
        # An embedding that serves as head cannot stand for one that is quantized.
        untied = {TIED: False} if quantizes_head(model) else {}
        return {
            **dtype_change(model.config, self.dense_dtype(model)),
            QUANTIZATION: self.settings(model),
            **untied,
        }

    def companions(self, model: ModelSpec) -> dict[str, bytes]:
        """Files of the container's own, beside those that every artifact carries."""
        return {}

    def check(self, model: ModelSpec) -> None:
        """Raise RefusedError for a model whose tensors fit one by one, and cannot be held together."""
        if not any(spec.format for spec in model.tensors.values()):
            raise RefusedError(
                f"no tensor is quantized, and {self.label} files are of quantized models", "use dialect: dense"
            )

    def stored(self, model: ModelSpec) -> Mapping[str, TensorSpec]:
        self.check(model)
        return {part: spec for parts in self._parts(model).values() for part, spec in parts.items()}

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        shards, parts = self.shards(model.spec), self._parts(model.spec)
        write_files(directory, {**edit_config(model, self.changes(model.spec)), **self.companions(model.spec)})
        homes = {part: name for name, held in parts.items() for part in held}
        write_parts(directory, shards, homes, partial(self._encode, model, parts), progress)

    def _parts(self, model: ModelSpec) -> dict[str, Parts]:
        """What every tensor is stored as, by its name."""
        scales, dtype = runtime_scales(model), self.dense_dtype(model)
        parts: dict[str, Parts] = {}
        for name, spec in model.tensors.items():
            if spec.format is not None:
                parts[name] = beside(name, self.parts(name, spec, model))
            elif name in scales:
                parts[name] = dict([self.runtime_scale(name, model)])
            else:
                parts[name] = {name: stored_as(spec, dtype)}
        return parts

    def _encode(self, model: Checkpoint, parts: Mapping[str, Parts], name: str) -> dict[str, Tensor]:
        tensor = model.read(name)
        if isinstance(tensor, QTensor):
            return beside(name, self.encode(name, tensor, model.spec))
        [(part, stored)] = parts[name].items()
        return {part: cast(name, tensor, stored.dtype).view(stored.shape)}


def beside(name: str, parts: Mapping[str, T]) -> dict[str, T]:
    """`X.weight` and what belongs to qweight, scales, … → the same by `X.qweight`, `X.scales`, …"""
    return {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}


def write_parts(
    directory: Path,
    shards: Shards,
    homes: Mapping[str, str],
    encode: Callable[[str], dict[str, Tensor]],
    progress: Progress,
) -> None:
    """Write the planned `shards`; `homes` says of each part which weight it belongs to.

    A weight's parts are asked for one after the other: `encode` reads and packs it once. Raises StorageError.
    """
    held: dict[str, Tensor] = {}

    def fill(part: str) -> Tensor:
        if part not in held:
            progress(homes[part])
            held.clear()
            held.update(encode(homes[part]))
        return held[part]

    write_shards(directory, shards, fill)
