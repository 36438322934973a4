"""The AWQ container: what AutoAWQ 0.2.9 writes with `version: gemm`, and vLLM and transformers load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from compress.formats.awq.checkpoint import AWQCheckpoint
from compress.formats.awq.config import group_size_of, quantization_config
from compress.formats.awq.tensors import BITS, PACKED, encode, geometry_of
from compress.formats.awq.witness import read_independently
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.directory.parts import InParts
from compress.formats.views.casting import FloatType, scale_misfit
from compress.formats.views.places import place_of
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor


class AWQ(InParts):
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
    label = "AWQ"
    reader = AWQCheckpoint
    judge = read_independently

    dtype: FloatType = "float16"

    def misfits(self, model: ModelSpec) -> dict[str, str]:
        common = group_size_of(model.tensors)  # once: it looks at all tensors
        reasons = ((name, _misfit(name, spec, common)) for name, spec in model.tensors.items())
        return {name: reason for name, reason in reasons if reason}

    def misfit(self, name: str, spec: TensorSpec, model: ModelSpec) -> str | None:
        return _misfit(name, spec, group_size_of(model.tensors))

    def settings(self, model: ModelSpec) -> dict[str, Any]:
        return quantization_config(model.tensors)

    def parts(self, name: str, spec: TensorSpec, model: ModelSpec) -> dict[str, TensorSpec]:
        assert isinstance(spec.format, IntFormat)  # misfit() lets nothing else through
        return geometry_of(spec.shape, spec.format.group_size).parts()

    def encode(self, name: str, tensor: QTensor, model: ModelSpec) -> dict[str, Tensor]:
        return encode(name, tensor)


def _misfit(name: str, spec: TensorSpec, common: int) -> str | None:
    """See Dialect.misfit; `common` is the group size that most layers have."""
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
    if found.group_size != common:
        return f"AWQ files have one group size, here {common}, not {found.group_size}; gptq files may have several"
    if reason := scale_misfit(found) or found.misfit(spec.shape):
        return reason
    if spec.shape[0] % PACKED:
        return f"its {spec.shape[0]} outputs do not divide by {PACKED}: leave it dense"
    return None
