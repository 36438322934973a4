"""The AWQ container: what AutoAWQ 0.2.9 writes with `version: gemm`, and vLLM and transformers load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.awq.checkpoint import AWQCheckpoint
from compress.formats.awq.config import group_size_of, quantization_config
from compress.formats.awq.tensors import BITS, PACKED, encode, geometry_of
from compress.formats.awq.witness import read_independently
from compress.formats.base import Checkpoint, Dialect, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.files.hf_files import dtype_change, edit_config, quant_method, write_files
from compress.formats.files.parts import beside, write_parts
from compress.formats.files.safetensors.shards import DEFAULT_SHARD_SIZE, Shards, plan_shards, planned_files
from compress.formats.gptq.config import place_of
from compress.formats.views.casting import FloatType, cast, scale_misfit, stored_as
from compress.formats.views.fit import fit_spec
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor


class AWQ(Dialect):
    """4-bit integer weights in AutoAWQ's GEMM packing, for vLLM, transformers and AutoAWQ.

    Holds the decoder layers' linears, all with one group size, with whole-number zero points; symmetric weights
    are stored with the zero point 8. Everything else is stored as `dtype`; scales are always float16.
    """

    name: ClassVar[str] = "awq"
    loads: ClassVar[Mapping[str, str]] = {
        "vllm": "vllm serve {path}",
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}")  # with gptqmodel',
        "autoawq": 'AutoAWQForCausalLM.from_quantized("{path}")',
    }
    dtype: FloatType = "float16"
    max_shard_size: ByteSize = Field(default=ByteSize(DEFAULT_SHARD_SIZE), gt=0)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return quant_method(path) == "awq"

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        return AWQCheckpoint(path, cls.name)

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        return read_independently(path)

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        found = spec.format
        if found is None:
            return None
        if not isinstance(found, IntFormat):
            return f"AWQ files hold integer grids, not {found.name}"
        if found.bits != BITS:
            return f"AWQ files pack 4 bits, not {found.bits}; gptq files hold 2, 3, 4 and 8"
        if found.zero == "real":
            return f"{found.name} has real minimums; AWQ files hold whole zero points, gguf's q4_1 minimums"
        if not (name.endswith(".weight") and place_of(name.removesuffix(".weight")).blocks):
            return "AWQ engines quantize decoder layers only: leave it dense, or use gptq, which holds an lm_head"
        if found.group_size != (common := group_size_of(model.tensors)):
            return f"AWQ files have one group size, here {common}, not {found.group_size}; gptq files may have several"
        if reason := scale_misfit(found) or found.misfit(spec.shape):
            return reason
        if spec.shape[0] % PACKED:
            return f"its {spec.shape[0]} outputs do not divide by {PACKED}: leave it dense"
        return None

    def layout(self, model: ModelSpec) -> Layout:
        return Layout(planned_files(self._shards(model)))

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        shards = self._shards(model.spec)
        weights = {part: name for name, spec in model.spec.tensors.items() for part in self._parts(name, spec)}
        changes: dict[str, Any] = {
            **dtype_change(model.spec.config, self.dtype),
            "quantization_config": quantization_config(model.spec.tensors),
        }
        write_files(directory, edit_config(model, changes))
        write_parts(directory, shards, weights, partial(self._encode, model), progress)

    def _shards(self, model: ModelSpec) -> Shards:
        fitting = fit_spec(model, self, requantize=False).tensors
        if not any(spec.format for spec in fitting.values()):
            raise RefusedError("no tensor is quantized, and AWQ files are of quantized models", "use dialect: dense")
        specs = {part: stored for name, spec in fitting.items() for part, stored in self._parts(name, spec).items()}
        return plan_shards(specs, self.max_shard_size)

    def _parts(self, name: str, spec: TensorSpec) -> dict[str, TensorSpec]:
        """What a tensor is stored as: name → spec."""
        if not isinstance(spec.format, IntFormat):
            return {name: stored_as(spec, self.dtype)}
        return beside(name, geometry_of(spec.shape, spec.format.group_size).parts())

    def _encode(self, model: Checkpoint, name: str) -> dict[str, Tensor]:
        tensor = model.read(name)
        if isinstance(tensor, QTensor):
            return beside(name, encode(name, tensor))
        return {name: cast(name, tensor, stored_as(model.spec.tensors[name], self.dtype).dtype)}
