"""Plain safetensors in a Hugging Face directory: what models are published as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec, Progress, TensorSpec
from compress.formats.dense.checkpoint import METHOD, DenseCheckpoint
from compress.formats.directory.base import InDirectory
from compress.formats.files.carried import write_files
from compress.formats.files.hf_config import is_hf_directory, quant_method
from compress.formats.files.hf_files import dtype_change, edit_config
from compress.formats.files.safetensors.shards import write_shards
from compress.formats.files.safetensors.witness import read_floats
from compress.formats.views.casting import cast, stored_as
from compress.formats.views.fit import Decoded, decoded_spec
from compress.formats.views.matrices import Restored, restored_spec


class Dense(InDirectory):
    """Safetensors in a Hugging Face directory: full-precision weights, or what quantized ones decode to.

    `dtype` is what every floating-point tensor is stored as; without it each keeps its own. The values of a
    number format need float32: s·(q − z) has more digits than float16 or bfloat16 hold. FP8 in blocks, as DeepSeek
    and Qwen publish it, is read as such.
    """

    name: ClassVar[str] = "dense"
    loads: ClassVar[Mapping[str, str]] = {
        "vllm": "vllm serve {path}",
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}")',
    }
    reader = DenseCheckpoint
    judge = read_floats

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return is_hf_directory(path) and quant_method(path) in (None, METHOD)

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        stored = stored_as(spec, self.dtype).dtype
        if spec.format is None or stored in ("float32", "float64"):
            return None
        return f"{stored} rounds the values of {spec.format.name}; dtype: float32 holds them exactly"

    def notes(self, model: ModelSpec) -> tuple[str, ...]:
        decoded = sum(spec.format is not None for spec in model.tensors.values())
        return (f"{decoded} quantized tensors are written as the values they decode to",) if decoded else ()

    def stored(self, model: ModelSpec) -> Mapping[str, TensorSpec]:
        tensors = restored_spec(decoded_spec(model)).tensors
        return {name: stored_as(spec, self.dtype) for name, spec in tensors.items()}

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        shards = self.shards(model.spec)
        stored = Restored(Decoded(model, decoded_spec(model.spec)))
        specs = {name: spec for held in shards.values() for name, spec in held.items()}

        def fill(name: str) -> Tensor:
            progress(name)
            values = stored.read(name)
            assert isinstance(values, Tensor)
            return cast(name, values, specs[name].dtype)

        write_files(directory, edit_config(model, self._changes(model.spec)))
        write_shards(directory, shards, fill)

    def _changes(self, model: ModelSpec) -> dict[str, str]:
        if self.dtype is not None:
            return dtype_change(model.config, self.dtype)
        if any(spec.format is not None for spec in model.tensors.values()):
            return dtype_change(model.config, "float32")
        return {}
