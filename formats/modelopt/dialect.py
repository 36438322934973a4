"""The modelopt container: NVIDIA's unified Hugging Face checkpoint, which TensorRT-LLM and vLLM load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.compressed_tensors.config import inputs_alone
from compress.formats.compressed_tensors.schemes import Scheme
from compress.formats.directory.parts import InParts
from compress.formats.files.hf_config import HF_QUANT_CONFIG
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
from compress.formats.views.casting import FloatType
from compress.formats.views.linear_names import is_linear
from compress.kernels.qtensor import QTensor


class ModelOpt(InParts):
    """NVIDIA Model Optimizer's, for TensorRT-LLM and vLLM: FP8 weights and inputs, NVFP4 weights, FP8 cache.

    Holds linear layers, all of one kind: FP8 per tensor with static inputs, per channel with inputs per token or
    per block with inputs per group; or NVFP4 with inputs as they are. Everything else is stored as `dtype`.
    """

    name: ClassVar[str] = METHOD
    loads: ClassVar[Mapping[str, str]] = {"tensorrt-llm": "trtllm-serve {path}", "vllm": "vllm serve {path}"}
    label = "modelopt"
    reader = ModelOptCheckpoint
    judge = read_independently

    dtype: FloatType = "bfloat16"

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

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        algorithm_of(model)

    def settings(self, model: ModelSpec) -> dict[str, Any]:
        return quantization_config(model)

    def companions(self, model: ModelSpec) -> dict[str, bytes]:
        return {HF_QUANT_CONFIG: encode_json(hf_quant_config(model))}

    def parts(self, name: str, spec: TensorSpec, model: ModelSpec) -> dict[str, TensorSpec]:
        assert spec.format is not None
        return storage_of(spec.format).parts(spec.shape, spec.format, "float32")

    def runtime_scale(self, name: str, model: ModelSpec) -> tuple[str, TensorSpec]:
        return name if name.endswith(".input_scale") else stored_name(name), TensorSpec((), "float32")

    def encode(self, name: str, tensor: QTensor, model: ModelSpec) -> dict[str, Tensor]:
        return storage_of(tensor.format).encode(name, tensor, "float32")
