"""The compressed-tensors container: what llm-compressor writes, and vLLM and transformers load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.compressed_tensors.checkpoint import CompressedTensorsCheckpoint
from compress.formats.compressed_tensors.config import (
    METHOD,
    inputs_alone,
    quantization_config,
    quantizes_head,
    schemes_of,
)
from compress.formats.compressed_tensors.schemes import Scheme
from compress.formats.compressed_tensors.storage import scale_dtype
from compress.formats.compressed_tensors.witness import read_independently
from compress.formats.errors import RefusedError
from compress.formats.files.hf_files import dtype_change, edit_config, quant_method, write_files
from compress.formats.files.parts import beside, write_parts
from compress.formats.files.safetensors.shards import DEFAULT_SHARD_SIZE, Shards, plan_shards, planned_files
from compress.formats.views.casting import FloatType, cast, compute_dtype, stored_as
from compress.formats.views.fit import fit_spec
from compress.formats.views.linear_names import is_linear
from compress.formats.views.runtime_scales import runtime_scales
from compress.kernels.qtensor import QTensor


class CompressedTensors(Dialect):
    """What llm-compressor writes, for vLLM and transformers: integers, packed or with int8 inputs, FP8 and FP4.

    Holds linear layers of 2 to 8 bits, symmetric or with whole-number zero points, any group size or per
    channel, FP8 per tensor, channel or block, MXFP4 and NVFP4; how inputs and cache are rounded; layers may
    differ. Everything else is stored as `dtype`; without it as float16, or as bfloat16 where inputs are rounded
    or weights are floats. Scales of integers keep their type, or are float32 with `dtype: float32`.
    """

    name: ClassVar[str] = METHOD
    loads: ClassVar[Mapping[str, str]] = {
        "vllm": "vllm serve {path}",
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}")  # with compressed-tensors',
    }
    dtype: FloatType | None = None
    max_shard_size: ByteSize = Field(default=ByteSize(DEFAULT_SHARD_SIZE), gt=0)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return quant_method(path) == METHOD

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        return CompressedTensorsCheckpoint(path, cls.name)

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        return read_independently(path)

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        if spec.format is None:
            return None
        if reason := Scheme(spec.format).misfit():
            return reason
        if not is_linear(name):
            return "compressed-tensors engines quantize linear layers only: leave it dense"
        return spec.format.misfit(spec.shape)

    def runtime_misfit(self, model: ModelSpec) -> str | None:
        if model.kv_cache and model.kv_cache.per == "token":
            return "compressed-tensors files hold static scales of the cache, not scales per token"
        misfits = ((module, scheme.misfit()) for module, scheme in schemes_of(model).items() if scheme.inputs)
        return inputs_alone(model) or next((f"{module}: {reason}" for module, reason in misfits if reason), None)

    def options(self, model: ModelSpec) -> Mapping[str, Any]:
        return {**self.model_dump(), "dtype": self._dtype(model)}

    def layout(self, model: ModelSpec) -> Layout:
        return Layout(planned_files(self._shards(model)))

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        shards, dtype = self._shards(model.spec), self._dtype(model.spec)
        homes = {part: name for name in model.spec.tensors for part in self._parts(name, model.spec, dtype)}
        changes: dict[str, Any] = {
            **dtype_change(model.spec.config, dtype),
            "quantization_config": quantization_config(model.spec),
        }
        if quantizes_head(model.spec):
            changes["tie_word_embeddings"] = False
        write_files(directory, edit_config(model, changes))
        write_parts(directory, shards, homes, partial(self._encode, model, dtype), progress)

    def _shards(self, model: ModelSpec) -> Shards:
        fitting = fit_spec(model, self, requantize=False)
        if not schemes_of(fitting) and not fitting.kv_cache:
            raise RefusedError(
                "no tensor is quantized, nor the cache, and compressed-tensors files are of quantized models",
                "use dialect: dense",
            )
        dtype = self._dtype(fitting)
        parts = (self._parts(name, fitting, dtype) for name in fitting.tensors)
        return plan_shards({part: stored for found in parts for part, stored in found.items()}, self.max_shard_size)

    def _dtype(self, model: ModelSpec) -> FloatType:
        return self.dtype or compute_dtype(model)

    def _parts(self, name: str, model: ModelSpec, dtype: FloatType) -> dict[str, TensorSpec]:
        """What a tensor is stored as: name → spec."""
        spec = model.tensors[name]
        if spec.format is not None:
            storage = Scheme(spec.format, model.activations.get(name.removesuffix(".weight"))).storage
            return beside(name, storage.parts(spec.shape, spec.format, scale_dtype(spec.format, dtype)))
        if name not in runtime_scales(model):
            return {name: stored_as(spec, dtype)}
        per_head = model.kv_cache and model.kv_cache.per == "head" and not name.endswith(".input_scale")
        return {name: TensorSpec((spec.size, 1, 1) if per_head else (1,), "float32")}

    def _encode(self, model: Checkpoint, dtype: FloatType, name: str) -> dict[str, Tensor]:
        tensor = model.read(name)
        if isinstance(tensor, QTensor):
            storage = Scheme(tensor.format, model.spec.activations.get(name.removesuffix(".weight"))).storage
            return beside(name, storage.encode(name, tensor, scale_dtype(tensor.format, dtype)))
        stored = self._parts(name, model.spec, dtype)[name]
        return {name: cast(name, tensor, stored.dtype).view(stored.shape)}
