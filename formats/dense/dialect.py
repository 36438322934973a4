"""Plain safetensors in a Hugging Face directory: what models are published as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.files.hf_files import (
    HFCheckpoint,
    dtype_change,
    edit_config,
    is_hf_directory,
    quantization_of,
    write_files,
)
from compress.formats.files.safetensors.shards import (
    DEFAULT_SHARD_SIZE,
    Shards,
    plan_shards,
    planned_files,
    write_shards,
)
from compress.formats.files.safetensors.witness import read_with_library
from compress.formats.views.casting import FloatType, cast, stored_as
from compress.formats.views.fit import Decoded, decoded_spec, fit_spec
from compress.formats.views.matrices import Restored, restored_spec


class Dense(Dialect):
    """Safetensors in a Hugging Face directory: full-precision weights, or what quantized ones decode to.

    `dtype` is what every floating-point tensor is stored as; without it each keeps its own. The values of a
    number format need float32: s·(q − z) has more digits than float16 or bfloat16 hold.
    """

    name: ClassVar[str] = "dense"
    loads: ClassVar[Mapping[str, str]] = {
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}")',
        "vllm": "vllm serve {path}",
    }
    dtype: FloatType | None = None
    max_shard_size: ByteSize = Field(default=ByteSize(DEFAULT_SHARD_SIZE), gt=0)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return is_hf_directory(path) and quantization_of(path) is None

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        return HFCheckpoint(path, cls.name)

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        read = read_with_library(path)
        return lambda name: read(name).float()

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        stored = stored_as(spec, self.dtype).dtype
        if spec.format is None or stored in ("float32", "float64"):
            return None
        return f"{stored} rounds the values of {spec.format.name}; dtype: float32 holds them exactly"

    def layout(self, model: ModelSpec) -> Layout:
        decoded = sum(spec.format is not None for spec in model.tensors.values())
        note = f"{decoded} quantized tensors are written as the values they decode to"
        return Layout(planned_files(self._shards(model)), (note,) if decoded else ())

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        shards = self._shards(model.spec)
        stored = Restored(Decoded(model, decoded_spec(model.spec)))
        specs = {name: spec for held in shards.values() for name, spec in held.items()}

        def fill(name: str) -> Tensor:
            progress(name)
            values = stored.read(name)
            assert isinstance(values, Tensor)
            return cast(name, values, specs[name].dtype)

        write_files(directory, edit_config(model, self._changes(model.spec)))
        write_shards(directory, shards, fill)

    def _shards(self, model: ModelSpec) -> Shards:
        fitting = restored_spec(decoded_spec(fit_spec(model, self, requantize=False))).tensors
        specs = {name: stored_as(spec, self.dtype) for name, spec in fitting.items()}
        return plan_shards(specs, self.max_shard_size)

    def _changes(self, model: ModelSpec) -> dict[str, str]:
        if self.dtype is not None:
            return dtype_change(model.config, self.dtype)
        if any(spec.format is not None for spec in model.tensors.values()):
            return dtype_change(model.config, "float32")
        return {}
