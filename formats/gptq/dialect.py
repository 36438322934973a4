"""The GPTQ container: what AutoGPTQ 0.7.1 writes, and GPTQModel, transformers and vLLM load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from compress.formats.base import Checkpoint, Layout, ModelSpec, Progress, TensorSpec
from compress.formats.directory.parts import InParts
from compress.formats.files.hf_config import QUANTIZE_CONFIG
from compress.formats.files.storage import encode_json
from compress.formats.gptq.checkpoint import GPTQCheckpoint
from compress.formats.gptq.config import quantization_config
from compress.formats.gptq.tensors import BITS, PACKED, encode, geometry_of
from compress.formats.gptq.witness import read_independently
from compress.formats.views.casting import FloatType, scale_misfit
from compress.formats.views.linear_names import is_linear
from compress.formats.views.untied import TIED, Untied, untied_spec
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor


class GPTQ(InParts):
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
    label = "GPTQ"
    reader = GPTQCheckpoint
    judge = read_independently

    dtype: FloatType = "float16"
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    untie: bool = False

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
        return super().layout(untied_spec(model) if self.untie else model)

    def write(self, model: Checkpoint, directory: Path, progress: Progress) -> None:
        super().write(Untied(model) if self.untie else model, directory, progress)

    def settings(self, model: ModelSpec) -> dict[str, Any]:
        return quantization_config(model, self.checkpoint_format)

    def changes(self, model: ModelSpec) -> dict[str, Any]:
        return super().changes(model) | ({TIED: False} if self.untie else {})

    def companions(self, model: ModelSpec) -> dict[str, bytes]:
        return {QUANTIZE_CONFIG: encode_json(self.settings(model))}

    def parts(self, name: str, spec: TensorSpec, model: ModelSpec) -> dict[str, TensorSpec]:
        assert isinstance(spec.format, IntFormat)  # misfit() lets nothing else through
        return geometry_of(spec.shape, spec.format).parts()

    def encode(self, name: str, tensor: QTensor, model: ModelSpec) -> dict[str, Tensor]:
        return encode(name, tensor, self.checkpoint_format)
