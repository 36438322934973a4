"""What a checkpoint is to the rest of the program: named tensors behind a lazy reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from compress.kernels.numbers.activations import ActivationFormat, CacheFormat
from compress.kernels.qtensor import NumberFormat, QTensor

Progress = Callable[[str], None]


def dtype_name(dtype: torch.dtype) -> str:
    """How specs name a torch dtype: `float32`."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Origin:
    """Where a model's files keep a tensor that the program handles as a linear layer's own.

    `name` is the tensor in the files; `index` which slice of it along the first axis (None: all of it);
    `transposed` whether it lies there as [in, out].
    """

    name: str
    index: int | None = None
    transposed: bool = False


@dataclass(frozen=True)
class TensorSpec:
    """What a header says of one tensor; nothing of it needs the data.

    `dtype` is a torch dtype name (`float32`, `bfloat16`, …): of the elements if the tensor is dense, of the
    values it decodes to if `format` names a number format. `origin` is set where the model's files keep the
    tensor in another form while it is dense (see formats/views/matrices.py).
    """

    shape: tuple[int, ...]
    dtype: str
    format: NumberFormat | None = None
    origin: Origin | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True)
class Zeros:
    """How a weight was pruned: the part `share` of it, in no `pattern` or n:m along the input, as `2:4`.

    `corrected`: what stayed was solved for the untouched model's outputs, and should not be once more.
    """

    share: float
    pattern: str | None = None
    corrected: bool = False

    def __str__(self) -> str:
        return self.pattern or f"{100 * self.share:.4g} %"


@dataclass(frozen=True)
class ModelSpec:
    """A model's headers: its `config.json` and the specs of its tensors, by Hugging Face name.

    `files` are the checkpoint's non-weight files: the size of a container that holds a tokenizer needs them.
    `name` is what files of weights are named after: what its publisher calls the model, or "".
    `activations` are the linear modules (names without `.weight`) whose inputs are rounded at run time, and
    `kv_cache` says how the cache is; static scales are tensors like any other. `pruned` are the linear modules whose
    zeros stay zeros, whatever changes them next.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    files: Mapping[str, bytes] = field(default_factory=dict)
    activations: Mapping[str, ActivationFormat] = field(default_factory=dict)
    kv_cache: CacheFormat | None = None
    name: str = ""
    pruned: Mapping[str, Zeros] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(spec.size for spec in self.tensors.values())

    @cached_property
    def formats(self) -> frozenset[type[NumberFormat]]:
        """The sorts of number formats that its tensors have."""
        return frozenset(type(spec.format) for spec in self.tensors.values() if spec.format is not None)

    @property
    def architecture(self) -> str:
        """The class that `config.json` names for the model, or else its type."""
        named = self.config.get("architectures") or [self.config.get("model_type", "unknown")]
        return str(named[0])


class Checkpoint(ABC):
    """Named tensors on disk. Opening reads headers only; `read` reads one tensor.

    Whatever the container, names are those of Hugging Face's safetensors (`model.layers.0.mlp.up_proj.weight`)
    and a quantized weight is one `QTensor` under the name of the weight it stands for.
    """

    path: Path
    dialect: str
    spec: ModelSpec

    @abstractmethod
    def read(self, name: str) -> Tensor | QTensor:
        """One tensor. Raises InputError if the file was truncated or holds NaN or Inf."""

    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Every non-weight file that an artifact must carry, by name: config, tokenizer, templates, licence."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the weight files on disk."""


@dataclass(frozen=True)
class FileLayout:
    """One file that an export will write, exact to the byte."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """What an export will write: known from headers alone, before any weight is read.

    `notes` are for the plan; `substitutes`, what is written otherwise than was asked for, are said by the run, too.
    """

    files: tuple[FileLayout, ...]
    notes: tuple[str, ...] = field(default=())
    substitutes: tuple[str, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)


class Dialect(BaseModel):
    """One container convention: a subclass in its own file of `formats/`. Its fields are its export options.

    The subclass's docstring is what `compress dialects` shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: ClassVar[str]
    loads: ClassVar[Mapping[str, str]]
    """Engine → the one line that loads an artifact there; `{path}` stands for its directory, `{file}` for the name
    of its one file of weights."""

    @property
    def folder(self) -> str:
        """The directory that an export is written to where nothing else is said."""
        return self.name

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether `path` (a file or a directory) is a checkpoint of this dialect; looks at headers only."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open `path` lazily. Raises InputError naming the file and what is wrong with it."""

    @classmethod
    @abstractmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        """Tensors by name, fp32, as the format's own library and documents read the artifact at `path`.

        An independent judge of what `write` wrote: it shares no decoding code with `open`. Use it on our own
        files only, never on untrusted ones.
        """

    @abstractmethod
    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        """Why this container cannot hold that tensor exactly, and what could; None if it can."""

    def misfits(self, model: ModelSpec) -> dict[str, str]:
        """The quantized tensors that this container cannot hold exactly, by name, and why not."""
        return {
            name: reason
            for name, spec in model.tensors.items()
            if spec.format is not None and (reason := self.misfit(name, spec, model))
        }

    def runtime_misfit(self, model: ModelSpec) -> str | None:
        """Why this container cannot say how `model` rounds activations or its cache, and what could; None if it can.

        Most containers speak of weights only.
        """
        if model.activations:
            return f"{self.name} files cannot say that inputs are rounded at run time; compressed-tensors can"
        if model.kv_cache:
            return f"{self.name} files cannot hold scales of the key/value cache; compressed-tensors can"
        return None

    @property
    def rounds(self) -> bool:
        """Whether it may round dense matrices onto number formats (`roundings`)."""
        return False

    def roundings(self, model: ModelSpec) -> Mapping[str, NumberFormat]:
        """The number formats that dense tensors of `model`, by name, are rounded onto when they are written."""
        return {}

    def weighing(self) -> Mapping[str, Any]:
        """Options that it takes where errors of `roundings` are weighed by the inputs, beside those that were said."""
        return {}

    def options(self, model: ModelSpec) -> Mapping[str, Any]:
        """The options as an export of `model` takes them: those that depend on it are settled."""
        return self.model_dump()

    @abstractmethod
    def layout(self, model: ModelSpec) -> Layout:
        """The exact files of an export (weight files only) of a model that fits (formats/views/fit.py).

        Raises RefusedError for one that does not.
        """

    def tensors(self, model: ModelSpec) -> int:
        """How many tensors the files of an export hold: more than the model has, where one is written in parts."""
        return len(model.tensors)

    @abstractmethod
    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        """Write `model`, which fits, into the existing empty `directory`, tensor by tensor, other files included.

        Calls `progress(tensor name)` as it goes. Raises StorageError when the disk fails.
        """
