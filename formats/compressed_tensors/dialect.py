"""The compressed-tensors container: what llm-compressor writes, and vLLM and transformers load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.compressed_tensors.checkpoint import CompressedTensorsCheckpoint
from compress.formats.compressed_tensors.config import METHOD, inputs_alone, quantization_config, schemes_of
from compress.formats.compressed_tensors.schemes import Scheme
from compress.formats.compressed_tensors.storage import Storage, scale_dtype
from compress.formats.compressed_tensors.witness import read_independently
from compress.formats.directory.parts import InParts
from compress.formats.views.casting import FloatType, compute_dtype
from compress.formats.views.linear_names import is_linear
from compress.kernels.qtensor import NumberFormat, QTensor


class CompressedTensors(InParts):
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
    label = "compressed-tensors"
    reader = CompressedTensorsCheckpoint
    judge = read_independently

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
        return {**self.model_dump(), "dtype": self.dense_dtype(model)}

    def check(self, model: ModelSpec) -> None:
        if not model.kv_cache:  # which may be all that is quantized
            super().check(model)

    def settings(self, model: ModelSpec) -> dict[str, Any]:
        return quantization_config(model)

    def dense_dtype(self, model: ModelSpec) -> FloatType:
        return self.dtype or compute_dtype(model)

    def parts(self, name: str, spec: TensorSpec, model: ModelSpec) -> dict[str, TensorSpec]:
        assert spec.format is not None
        stored = scale_dtype(spec.format, self.dense_dtype(model))
        return _storage(name, spec.format, model).parts(spec.shape, spec.format, stored)

    def runtime_scale(self, name: str, model: ModelSpec) -> tuple[str, TensorSpec]:
        per_head = model.kv_cache and model.kv_cache.per == "head" and not name.endswith(".input_scale")
        return name, TensorSpec((model.tensors[name].size, 1, 1) if per_head else (1,), "float32")

    def encode(self, name: str, tensor: QTensor, model: ModelSpec) -> dict[str, Tensor]:
        stored = scale_dtype(tensor.format, self.dense_dtype(model))
        return _storage(name, tensor.format, model).encode(name, tensor, stored)


def _storage(name: str, number_format: NumberFormat, model: ModelSpec) -> Storage:
    """How the quantized weight `name` is stored."""
    return Scheme(number_format, model.activations.get(name.removesuffix(".weight"))).storage
