"""The bitsandbytes container: what transformers saves of models quantized to NF4, FP4 or LLM.int8, and loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.bitsandbytes.checkpoint import BitsAndBytesCheckpoint
from compress.formats.bitsandbytes.config import kind_of, quantization_config
from compress.formats.bitsandbytes.tensors import BLOCK_SIZES, TABLES, encode, is_int8, parts_of
from compress.formats.bitsandbytes.witness import read_independently
from compress.formats.directory.parts import InParts
from compress.formats.views.casting import FloatType
from compress.formats.views.linear_names import is_linear
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.qtensor import QTensor


class BitsAndBytes(InParts):
    """NF4, FP4 or LLM.int8 weights as transformers saves them, for transformers with bitsandbytes.

    Holds linear layers, all of one kind: nf4 or fp4 in blocks of 32 to 4096, with or without double
    quantization, or int8 per channel (symmetric). Everything else is stored as `dtype`, which is also what
    engines compute in. Scales are float32.
    """

    name: ClassVar[str] = "bitsandbytes"
    loads: ClassVar[Mapping[str, str]] = {
        "transformers": 'AutoModelForCausalLM.from_pretrained("{path}")  # with bitsandbytes and accelerate',
    }
    label = "bitsandbytes"
    reader = BitsAndBytesCheckpoint
    judge = read_independently

    dtype: FloatType = "float16"

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

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        kind_of(model.tensors)

    def settings(self, model: ModelSpec) -> dict[str, Any]:
        return quantization_config(model.tensors, self.dtype)

    def parts(self, name: str, spec: TensorSpec, model: ModelSpec) -> dict[str, TensorSpec]:
        assert spec.format is not None
        return parts_of(spec.shape, spec.format, self.dtype)

    def encode(self, name: str, tensor: QTensor, model: ModelSpec) -> dict[str, Tensor]:
        return encode(tensor, self.dtype)
