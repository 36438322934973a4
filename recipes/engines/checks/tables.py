"""Numbers that stand in tables, or in formats of their own: NF4, FP4."""

from __future__ import annotations

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.recipes.engines.subject import Check, Subject


def without(*names: str, why: str) -> Check:
    """No weight is in a number format of one of these names."""

    def check(subject: Subject) -> str | None:
        found = ((name, spec.format.name) for name, spec in subject.quantized.items() if spec.format)
        return next((f"{name} is in {kind}, {why}" for name, kind in found if kind in names), None)

    return check


def float4_in_bfloat16(subject: Subject) -> str | None:
    """FP4 stands beside tensors in bfloat16: what a library decodes it to that does not ask."""
    dtype = subject.options.get("dtype") or subject.model.config.get("dtype") or subject.model.config.get("torch_dtype")
    found = any(isinstance(spec.format, Float4Format) for spec in subject.quantized.values())
    if not found or dtype == "bfloat16":
        return None
    change = "export with dtype: bfloat16, or load it with dtype=torch.bfloat16"
    return f"decodes FP4 to bfloat16, beside other tensors in {dtype}; {change}"


def cpu_rows(subject: Subject) -> str | None:
    """4-bit weights of bitsandbytes have a multiple of 32 rows."""
    tables = (name for name, spec in subject.quantized.items() if isinstance(spec.format, CodebookFormat))
    odd = next((name for name in tables if subject.model.tensors[name].shape[0] % 32), None)
    return odd and f"{odd} has rows not in 32s, and will not run on a CPU with AVX-512 BF16"


def long_blocks(subject: Subject) -> str | None:
    """Blocks have 64 weights or more."""
    tables = ((name, spec.format) for name, spec in subject.quantized.items())
    short = next((n for n, table in tables if isinstance(table, CodebookFormat) and table.block_size < 64), None)
    return short and f"{short} has blocks of 32, which only bitsandbytes 0.50 and later load"
