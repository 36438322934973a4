"""The modelopt container: NVIDIA's unified Hugging Face checkpoint, which TensorRT-LLM and vLLM load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.compressed_tensors.config import inputs_alone, quantizes_head
from compress.formats.compressed_tensors.schemes import Scheme
from compress.formats.files.hf_files import HF_QUANT_CONFIG, dtype_change, edit_config, quant_method, write_files
from compress.formats.files.parts import beside, write_parts
from compress.formats.files.safetensors.shards import DEFAULT_SHARD_SIZE, Shards, plan_shards, planned_files
from compress.formats.files.storage import encode_json
from compress.formats.modelopt.checkpoint import ModelOptCheckpoint
from compress.formats.modelopt.config import (
    CACHE,
    METHOD,
    algorithm_of,
    format_misfit,
    hf_quant_config,
    quantization_config,
    scheme_misfit,
)
from compress.formats.modelopt.tensors import shape_misfit, storage_of, stored_name
from compress.formats.modelopt.witness import read_independently
from compress.formats.views.casting import FloatType, cast, stored_as
from compress.formats.views.fit import fit_spec
from compress.formats.views.linear_names import is_linear
from compress.formats.views.runtime_scales import runtime_scales
from compress.kernels.qtensor import QTensor


class ModelOpt(Dialect):
    """NVIDIA Model Optimizer's, for TensorRT-LLM and vLLM: FP8 weights and inputs, NVFP4 weights, FP8 cache.

    Holds linear layers, all of one kind: FP8 per tensor with static inputs, per channel with inputs per token or
    per block with inputs per group; or NVFP4 with inputs as they are. Everything else is stored as `dtype`.
    """

    name: ClassVar[str] = METHOD
    loads: ClassVar[Mapping[str, str]] = {"tensorrt-llm": "trtllm-serve {path}", "vllm": "vllm serve {path}"}
    dtype: FloatType = "bfloat16"
    max_shard_size: ByteSize = Field(default=ByteSize(DEFAULT_SHARD_SIZE), gt=0)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return quant_method(path) == METHOD

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        return ModelOptCheckpoint(path, cls.name)

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        return read_independently(path)

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        if spec.format is None:
            return None
        if reason := format_misfit(spec.format):
            return reason
        if not is_linear(name):
            return "modelopt engines quantize linear layers only: leave it dense"
        if reason := shape_misfit(spec.shape, spec.format):
            return reason
        return scheme_misfit(Scheme(spec.format, model.activations.get(name.removesuffix(".weight"))))

    def runtime_misfit(self, model: ModelSpec) -> str | None:
        if model.kv_cache not in (None, CACHE):
            return f"modelopt files hold a cache in {CACHE.name}, not {model.kv_cache.name}"
        return inputs_alone(model)

    def layout(self, model: ModelSpec) -> Layout:
        return Layout(planned_files(self._shards(model)))

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        shards = self._shards(model.spec)
        homes = {part: name for name in model.spec.tensors for part in self._parts(name, model.spec)}
        changes: dict[str, Any] = {
            **dtype_change(model.spec.config, self.dtype),
            "quantization_config": quantization_config(model.spec),
        }
        if quantizes_head(model.spec):
            changes["tie_word_embeddings"] = False
        settings = encode_json(hf_quant_config(model.spec))
        write_files(directory, {**edit_config(model, changes), HF_QUANT_CONFIG: settings})
        write_parts(directory, shards, homes, partial(self._encode, model), progress)

    def _shards(self, model: ModelSpec) -> Shards:
        fitting = fit_spec(model, self, requantize=False)
        algorithm_of(fitting)
        specs = {part: stored for name in fitting.tensors for part, stored in self._parts(name, fitting).items()}
        return plan_shards(specs, self.max_shard_size)

    def _parts(self, name: str, model: ModelSpec) -> dict[str, TensorSpec]:
        """What a tensor is stored as: name → spec."""
        spec = model.tensors[name]
        if spec.format is not None:
            return beside(name, storage_of(spec.format).parts(spec.shape, spec.format, "float32"))
        if name not in runtime_scales(model):
            return {name: stored_as(spec, self.dtype)}
        return {name if name.endswith(".input_scale") else stored_name(name): TensorSpec((), "float32")}

    def _encode(self, model: Checkpoint, name: str) -> dict[str, Tensor]:
        tensor = model.read(name)
        if isinstance(tensor, QTensor):
            return beside(name, storage_of(tensor.format).encode(name, tensor, "float32"))
        [(part, stored)] = self._parts(name, model.spec).items()
        return {part: cast(name, tensor, stored.dtype).view(stored.shape)}
