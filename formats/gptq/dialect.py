"""The GPTQ container: what AutoGPTQ 0.7.1 writes, and GPTQModel, transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.files.hf_files import QUANTIZE_CONFIG, dtype_change, edit_config, quant_method, write_files
from compress.formats.files.parts import beside, write_parts
from compress.formats.files.safetensors.shards import (
    DEFAULT_SHARD_SIZE,
    Shards,
    plan_shards,
    planned_files,
)
from compress.formats.files.storage import encode_json
from compress.formats.gptq.checkpoint import GPTQCheckpoint
from compress.formats.gptq.config import quantization_config
from compress.formats.gptq.tensors import BITS, PACKED, encode, geometry_of
from compress.formats.gptq.witness import read_independently
from compress.formats.views.casting import FloatType, cast, scale_misfit, stored_as
from compress.formats.views.fit import fit_spec
from compress.formats.views.linear_names import is_linear
from compress.formats.views.untied import TIED, Untied, untied_spec
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor


class GPTQ(Dialect):
    """Integer weights in GPTQ packing, for vLLM, GPTQModel, transformers and AutoGPTQ.

    Holds linear layers of 2, 3, 4 or 8 bits, symmetric or with whole-number zero points, any group size or
    per channel; layers may differ. Everything else is stored as `dtype`; scales are always float16.
    `checkpoint_format` is AutoGPTQ's layout (`gptq`), or GPTQModel's for asymmetric weights (`gptq_v2`).
    `untie` writes a head that is tied to the embedding out, without which AutoGPTQ answers noise.
    """

    name: ClassVar[str] = "gptq"
    loads: ClassVar[Mapping[str, str]] = {
        "vllm": "vllm serve {path}",
        "gptqmodel": 'GPTQModel.load("{path}")',
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}")  # with optimum and gptqmodel',
        "autogptq": 'AutoGPTQForCausalLM.from_quantized("{path}")  # see `untie`',
    }
    dtype: FloatType = "float16"
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    untie: bool = False
    max_shard_size: ByteSize = Field(default=ByteSize(DEFAULT_SHARD_SIZE), gt=0)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return quant_method(path, unnamed="gptq") == "gptq"  # AutoGPTQ's early files name none

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        return GPTQCheckpoint(path, cls.name)

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        return read_independently(path)

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        found = spec.format
        if found is None:
            return None
        if not isinstance(found, IntFormat):
            return f"GPTQ files hold integer grids, not {found.name}"
        if found.bits not in BITS:
            return f"GPTQ files pack 2, 3, 4 or 8 bits, not {found.bits}"
        if found.zero == "real":
            return f"{found.name} has real minimums; GPTQ files hold whole zero points, gguf's q4_1 minimums"
        if not is_linear(name):
            return "GPTQ files hold linear layers only: leave it dense"
        if reason := scale_misfit(found) or found.misfit(spec.shape):
            return reason
        if any(extent % PACKED for extent in spec.shape):
            return f"its {spec.shape[0]} × {spec.shape[1]} weights do not divide by {PACKED}: leave it dense"
        return None

    def layout(self, model: ModelSpec) -> Layout:
        model = untied_spec(model) if self.untie else model
        return Layout(planned_files(self._shards(model)))

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        model = Untied(model) if self.untie else model
        shards = self._shards(model.spec)
        weights = {part: name for name, spec in model.spec.tensors.items() for part in self._parts(name, spec)}
        settings = quantization_config(model.spec.tensors, self.checkpoint_format)
        changes: dict[str, Any] = {
            **dtype_change(model.spec.config, self.dtype),
            "quantization_config": settings,
        }
        if settings["lm_head"] or self.untie:
            changes[TIED] = False
        write_files(directory, {**edit_config(model, changes), QUANTIZE_CONFIG: encode_json(settings)})
        write_parts(directory, shards, weights, partial(self._encode, model), progress)

    def _shards(self, model: ModelSpec) -> Shards:
        fitting = fit_spec(model, self, requantize=False).tensors
        if not any(spec.format for spec in fitting.values()):
            raise RefusedError("no tensor is quantized, and GPTQ files are of quantized models", "use dialect: dense")
        specs = {part: stored for name, spec in fitting.items() for part, stored in self._parts(name, spec).items()}
        return plan_shards(specs, self.max_shard_size)

    def _parts(self, name: str, spec: TensorSpec) -> dict[str, TensorSpec]:
        """What a tensor is stored as: name → spec."""
        if not isinstance(spec.format, IntFormat):
            return {name: stored_as(spec, self.dtype)}
        return beside(name, geometry_of(spec.shape, spec.format).parts())

    def _encode(self, model: Checkpoint, name: str) -> dict[str, Tensor]:
        tensor = model.read(name)
        if isinstance(tensor, QTensor):
            return beside(name, encode(name, tensor, self.checkpoint_format))
        return {name: cast(name, tensor, stored_as(model.spec.tensors[name], self.dtype).dtype)}
