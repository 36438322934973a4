"""What an AWQ artifact says of itself: `quantization_config` in config.json.

It has one `bits`, `group_size` and `zero_point` for the whole model. `modules_to_not_convert` names the linears
that stayed dense: vLLM 0.32 and AutoAWQ 0.2.9 look whether one of the names is part of a module's name,
transformers 5.23 whether the module's name ends with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.views.places import linears_of
from compress.kernels.numbers.int import IntFormat


def quantization_config(tensors: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """The `quantization_config` of a model with these tensors."""
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size_of(tensors),
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": [place.name for place, spec in linears_of(tensors).items() if spec.format is None],
    }


def group_size_of(tensors: Mapping[str, TensorSpec]) -> int:
    """The commonest group size of the integer weights; AutoAWQ's default if there are none."""
    sizes = Counter(spec.format.group_size for spec in tensors.values() if isinstance(spec.format, IntFormat))
    return sizes.most_common(1)[0][0] if sizes else 128


def declared_group_size(settings: Mapping[str, Any], path: Path) -> int:
    """The group size of a file. Raises InputError for a packing other than AutoAWQ's 4-bit GEMM."""
    bits = settings.get("bits", settings.get("w_bit", 4))
    version = str(settings.get("version", settings.get("format", "gemm"))).lower()
    if settings.get("backend") == "llm-awq" or version != "gemm":
        raise InputError(
            f"{path} is packed as AWQ {version[:40]!r}; what is read is gemm",
            "get the model in that packing, or unquantized",
        )
    if bits != 4 or settings.get("zero_point", True) is not True:
        raise InputError(f"{path}: AWQ files have 4 bits and zero points; these have {str(settings)[:100]}")
    found = settings.get("group_size", settings.get("q_group_size", 128))
    if type(found) is not int or (found != -1 and found < 1):
        raise InputError(f"{path}: group_size is {str(found)[:40]}; it must be a positive whole number, or -1")
    return found
