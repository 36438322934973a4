"""Inputs and caches that are rounded at run time."""

from __future__ import annotations

from compress.formats.bitsandbytes.tensors import is_int8
from compress.kernels.numbers.activations import GROUP
from compress.recipes.engines.subject import Subject


def half_inputs(subject: Subject) -> str | None:
    """What rounds its inputs to int8 is not computed in float16, which aborts the process on CPUs with AMX."""
    rounds = any(inputs.grid == "int8" for inputs in subject.model.activations.values())
    config = subject.model.config
    half = "float16" in (subject.options.get("dtype"), config.get("dtype"), config.get("torch_dtype"))
    return "aborts in float16 on CPUs with AMX; export with dtype: bfloat16" if rounds and half else None


def whole_groups(subject: Subject) -> str | None:
    """Inputs that are rounded in groups divide into them."""
    for module, inputs in subject.model.activations.items():
        columns = subject.model.tensors[f"{module}.weight"].shape[1]
        if inputs.per == "group" and columns % GROUP:
            return f"{module} has {columns} inputs, which are no whole groups of {GROUP}; use per: channel"
    return None


def kept_inputs(subject: Subject) -> str | None:
    """No weight is LLM.int8."""
    rows = next((name for name, spec in subject.quantized.items() if is_int8(spec.format)), None)
    return rows and "on a GPU, inputs are rounded to int8 as well (LLM.int8), outliers apart"


def float8_cache(subject: Subject) -> str | None:
    """A rounded key/value cache is FP8."""
    cache = subject.model.kv_cache
    return f"the cache is {cache.name}; use fp8" if cache and cache.grid != "fp8" else None
