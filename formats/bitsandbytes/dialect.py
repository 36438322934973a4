"""The bitsandbytes container: what transformers saves of models quantized to NF4, FP4 or LLM.int8, and loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ByteSize, Field
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.bitsandbytes.checkpoint import BitsAndBytesCheckpoint
from compress.formats.bitsandbytes.config import kind_of, quantization_config
from compress.formats.bitsandbytes.tensors import BLOCK_SIZES, TABLES, encode, is_int8, parts_of
from compress.formats.bitsandbytes.witness import read_independently
from compress.formats.files.hf_files import dtype_change, edit_config, quant_method, write_files
from compress.formats.files.parts import beside, write_parts
from compress.formats.files.safetensors.shards import DEFAULT_SHARD_SIZE, Shards, plan_shards, planned_files
from compress.formats.gptq.config import place_of
from compress.formats.views.casting import FloatType, cast, stored_as
from compress.formats.views.fit import fit_spec
from compress.formats.views.linear_names import is_linear
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.qtensor import QTensor


class BitsAndBytes(Dialect):
    """NF4, FP4 or LLM.int8 weights as transformers saves them, for transformers with bitsandbytes.

    Holds linear layers, all of one kind: nf4 or fp4 in blocks of 32 to 4096, with or without double
    quantization, or int8 per channel (symmetric). Everything else is stored as `dtype`, which is also what
    engines compute in. Scales are float32.
    """

    name: ClassVar[str] = "bitsandbytes"
    loads: ClassVar[Mapping[str, str]] = {
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}")  # with bitsandbytes and accelerate',
    }
    dtype: FloatType = "float16"
    max_shard_size: ByteSize = Field(default=ByteSize(DEFAULT_SHARD_SIZE), gt=0)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return quant_method(path) == "bitsandbytes"

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        return BitsAndBytesCheckpoint(path, cls.name)

    @classmethod
    def witness(cls, path: Path) -> Callable[[str], Tensor]:
        return read_independently(path)

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        found = spec.format
        if found is None:
            return None
        if not is_linear(name):
            return "bitsandbytes files hold linear layers only: leave it dense"
        if is_int8(found):
            return None
        if not (isinstance(found, CodebookFormat) and found.table in TABLES):
            return f"bitsandbytes files hold nf4, fp4 and symmetric int8 per channel, not {found.name}; dense holds all"
        if found.block_size not in BLOCK_SIZES:
            return f"bitsandbytes has blocks of {', '.join(map(str, BLOCK_SIZES))}, not {found.block_size}"
        return found.misfit(spec.shape)

    def layout(self, model: ModelSpec) -> Layout:
        return Layout(planned_files(self._shards(model)))

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        tensors = model.spec.tensors
        shards = self._shards(model.spec)
        homes = {part: name for name, spec in tensors.items() for part in self._parts(name, spec)}
        changes: dict[str, Any] = {
            **dtype_change(model.spec.config, self.dtype),
            "quantization_config": quantization_config(tensors, self.dtype),
        }
        if any(spec.format and not place_of(name.removesuffix(".weight")).blocks for name, spec in tensors.items()):
            changes["tie_word_embeddings"] = False
        write_files(directory, edit_config(model, changes))
        write_parts(directory, shards, homes, partial(self._encode, model), progress)

    def _shards(self, model: ModelSpec) -> Shards:
        fitting = fit_spec(model, self, requantize=False).tensors
        kind_of(fitting)
        specs = {part: stored for name, spec in fitting.items() for part, stored in self._parts(name, spec).items()}
        return plan_shards(specs, self.max_shard_size)

    def _parts(self, name: str, spec: TensorSpec) -> dict[str, TensorSpec]:
        """What a tensor is stored as: name → spec."""
        if spec.format is None:
            return {name: stored_as(spec, self.dtype)}
        return beside(name, parts_of(spec.shape, spec.format, self.dtype))

    def _encode(self, model: Checkpoint, name: str) -> dict[str, Tensor]:
        tensor = model.read(name)
        if isinstance(tensor, QTensor):
            return beside(name, encode(tensor, self.dtype))
        return {name: cast(name, tensor, stored_as(model.spec.tensors[name], self.dtype).dtype)}
