"""The compressed-tensors container: what llm-compressor writes, and vLLM and transformers load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.casting import FloatType, cast, stored_as
from compress.formats.compressed_tensors_checkpoint import CompressedTensorsCheckpoint
from compress.formats.compressed_tensors_config import (
    METHOD,
    engine_notes,
    quantization_config,
    quantizes_head,
    schemes_of,
)
from compress.formats.compressed_tensors_schemes import Scheme
from compress.formats.compressed_tensors_witness import read_independently
from compress.formats.errors import RefusedError
from compress.formats.fit import fit_spec
from compress.formats.hf_files import dtype_change, edit_config, is_hf_directory, quantization_of, write_files
from compress.formats.linear_names import is_linear
from compress.formats.parts import beside, write_parts
from compress.formats.safetensors_shards import DEFAULT_SHARD_SIZE, Shards, plan_shards, planned_files
from compress.kernels.qtensor import QTensor


class CompressedTensors(Dialect):
    """Integer weights as llm-compressor packs them, for vLLM and transformers.

    Holds linear layers of 2 to 8 bits, symmetric or with whole-number zero points, any group size or per
    channel; layers may differ. Everything else is stored as `dtype`. Scales are float16, or float32 with
    `dtype: float32`.
    """

    name: ClassVar[str] = METHOD
    loads: ClassVar[Mapping[str, str]] = {
        "vllm": "vllm serve {path}",
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}")  # with compressed-tensors',
    }
    dtype: FloatType = "float16"
    max_shard_size: ByteSize = Field(default=ByteSize(DEFAULT_SHARD_SIZE), gt=0)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if not is_hf_directory(path):
            return False
        found = quantization_of(path)
        return found is not None and found.get("quant_method") == METHOD

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        return CompressedTensorsCheckpoint(path, cls.name)

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        return read_independently(path)

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        if spec.format is None:
            return None
        if reason := Scheme(spec.format).storage.misfit(spec.format):
            return reason
        if not is_linear(name):
            return "compressed-tensors engines quantize linear layers only: leave it dense"
        return spec.format.misfit(spec.shape)

    def layout(self, model: ModelSpec) -> Layout:
        return Layout(planned_files(self._shards(model)), engine_notes(model, self.dtype))

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        shards = self._shards(model.spec)
        schemes = schemes_of(model.spec)
        homes = {part: name for name, spec in model.spec.tensors.items() for part in self._parts(name, spec, schemes)}
        changes: dict[str, Any] = {
            **dtype_change(model.spec.config, self.dtype),
            "quantization_config": quantization_config(model.spec),
        }
        if quantizes_head(model.spec):
            changes["tie_word_embeddings"] = False
        write_files(directory, edit_config(model, changes))
        write_parts(directory, shards, homes, partial(self._encode, model, schemes), progress)

    def _shards(self, model: ModelSpec) -> Shards:
        fitting = fit_spec(model, self, requantize=False)
        schemes = schemes_of(fitting)
        if not schemes:
            raise RefusedError(
                "no tensor is quantized, and compressed-tensors files are of quantized models", "use dialect: dense"
            )
        specs = {
            part: stored
            for name, spec in fitting.tensors.items()
            for part, stored in self._parts(name, spec, schemes).items()
        }
        return plan_shards(specs, self.max_shard_size)

    def _parts(self, name: str, spec: TensorSpec, schemes: Mapping[str, Scheme]) -> dict[str, TensorSpec]:
        """What a tensor is stored as: name → spec."""
        if spec.format is None:
            return {name: stored_as(spec, self.dtype)}
        storage = schemes[name.removesuffix(".weight")].storage
        return beside(name, storage.parts(spec.shape, spec.format, self._scale_dtype))

    def _encode(self, model: Checkpoint, schemes: Mapping[str, Scheme], name: str) -> dict[str, Tensor]:
        tensor = model.read(name)
        if isinstance(tensor, QTensor):
            storage = schemes[name.removesuffix(".weight")].storage
            return beside(name, storage.encode(tensor, self._scale_dtype))
        return {name: cast(name, tensor, stored_as(model.spec.tensors[name], self.dtype).dtype)}

    @property
    def _scale_dtype(self) -> str:
        """float16 as the number format has it; engines make weights of the scale's type, so float32 for float32."""
        return "float32" if self.dtype == "float32" else "float16"
