"""A container in a Hugging Face directory: safetensors, `config.json`, and the files that every artifact carries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, Layout, ModelSpec, TensorSpec
from compress.formats.directory.codes import refuse_unexplained
from compress.formats.files.hf_config import quant_method
from compress.formats.files.hf_files import HFCheckpoint
from compress.formats.files.safetensors.shards import DEFAULT_SHARD_SIZE, Shards, plan_shards, planned_files
from compress.formats.views.casting import FloatType
from compress.formats.views.fit import refuse_misfits


class InDirectory(Dialect):
    """A subclass says which tensors stand for those of a model, writes them, and names its two readers."""

    reader: ClassVar[type[HFCheckpoint]]
    judge: ClassVar[Callable[[Path], Callable[[str], Tensor]]]
    """The witness of a directory: see `Dialect.witness`."""

    dtype: FloatType | None = None
    max_shard_size: ByteSize = Field(default=ByteSize(DEFAULT_SHARD_SIZE), gt=0)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return quant_method(path) == cls.name

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        checkpoint = cls.reader(path, cls.name)
        refuse_unexplained(checkpoint)
        return checkpoint

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        return cls.judge(path)

    @abstractmethod
    def stored(self, model: ModelSpec) -> Mapping[str, TensorSpec]:
        """The tensors of the files of a model that fits, all of them dense, by name."""

    def notes(self, model: ModelSpec) -> tuple[str, ...]:
        """What to say of an export."""
        return ()

    def layout(self, model: ModelSpec) -> Layout:
        return Layout(planned_files(self.shards(model)), self.notes(model))

    def tensors(self, model: ModelSpec) -> int:
        return len(self.stored(model))

    def shards(self, model: ModelSpec) -> Shards:
        """Which file holds which tensor. Raises RefusedError for what cannot be held."""
        refuse_misfits(model, self)
        return plan_shards(self.stored(model), self.max_shard_size)
