"""What a bitsandbytes artifact says of itself: `quantization_config` in config.json.

transformers reads one kind for the whole model (nf4, fp4 or int8), and the names of the linear layers that stayed
dense: transformers skips a module if a name of the list begins or ends its own (quantizers_utils.py,
`should_convert_module`). Block sizes and double quantization stand beside every weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.formats.base import TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.views.linear_names import is_linear
from compress.kernels.numbers.codebook import CodebookFormat

_HEAD = "lm_head"


def quantization_config(tensors: Mapping[str, TensorSpec], dtype: str) -> dict[str, Any]:
    """The `quantization_config` of a model with these tensors; `dtype` is what the engine computes in."""
    kind = kind_of(tensors)
    tables = [spec.format for spec in tensors.values() if isinstance(spec.format, CodebookFormat)]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": kind != "int8",
        "load_in_8bit": kind == "int8",
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4" if kind == "int8" else kind,
        "bnb_4bit_use_double_quant": any(table.double_quant for table in tables),
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(_dense_linears(tensors)),
        "llm_int8_threshold": 6.0,
    }


def kind_of(tensors: Mapping[str, TensorSpec]) -> str:
    """nf4, fp4 or int8. Raises RefusedError unless all quantized tensors, one at least, are of one kind."""
    found = {_kind(spec): name for name, spec in tensors.items() if spec.format is not None}
    if len(found) == 1:
        return next(iter(found))
    said = ", ".join(f"{kind} as {name}" for kind, name in sorted(found.items()))
    raise RefusedError(f"bitsandbytes files hold one kind of number, not {said}", "quantize all layers to one of them")


def _kind(spec: TensorSpec) -> str:
    return spec.format.table if isinstance(spec.format, CodebookFormat) else "int8"


def _dense_linears(tensors: Mapping[str, TensorSpec]) -> Iterator[str]:
    """Linear layers that are not quantized; a head that is tied to the embedding has no tensor."""
    if f"{_HEAD}.weight" not in tensors:
        yield _HEAD
    for name, spec in tensors.items():
        if spec.format is None and len(spec.shape) == 2 and is_linear(name):
            yield name.removesuffix(".weight")
