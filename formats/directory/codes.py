"""Tensors that are codes of weights, or what codes are multiplied with: without a word about them, they are no weights.

Recognized by the names and types that quantizers store them under, whatever the configuration says.
"""

from __future__ import annotations

from compress.formats.base import Checkpoint, TensorSpec
from compress.formats.errors import InputError
from compress.formats.views.runtime_scales import runtime_scales

_NAMES = (
    *(".qweight", ".qzeros", ".g_idx"),  # GPTQ, AWQ
    *(".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_global_scale", ".weight_g_idx"),
    *(".weight_scale_2", ".weight_scale_inv", "_scale_inv", ".input_scale", ".weights_scaling_factor"),
    *(".absmax", ".quant_map", ".SCB", ".weight_format"),  # bitsandbytes
    *("_proj_blocks", "_proj_scales"),  # MXFP4 as gpt-oss has it
    *(".q_weight", ".W_q", ".weight._data", ".weight._scale", ".weight_scales"),  # EXL2, HQQ, quanto, EETQ
)


def refuse_unexplained(checkpoint: Checkpoint) -> None:
    """Raise InputError, by name, for a tensor that opening took for a dense one and that is part of a quantized one."""
    explained = runtime_scales(checkpoint.spec)
    for name, spec in checkpoint.spec.tensors.items():
        if spec.format is None and name not in explained and _is_code(name, spec):
            raise InputError(
                f"{checkpoint.path} holds {name} ({spec.dtype}): its weights are quantized, "
                "and its configuration does not say how",
                "get the config.json that was published with it, or the model unquantized",
            )


def _is_code(name: str, spec: TensorSpec) -> bool:
    whole = name.endswith(".weight") and not spec.dtype.startswith(("float", "bfloat"))
    return name.endswith(_NAMES) or spec.dtype.startswith("float8") or whole
