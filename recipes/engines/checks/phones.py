"""What a phone's processor computes fast."""

from __future__ import annotations

from compress.formats.gguf.blocks.types import type_of
from compress.recipes.engines.subject import Subject

_FAST = ("q4_0", "q8_0", "iq4_nl")
_FEW = 0.01
"""The part of all parameters that may stay dense: routers of experts."""


def phone_types(subject: Subject) -> str | None:
    """All matrices are in types that llama.cpp repacks for ARM, or has products of 8-bit integers for."""
    formats = {name: spec.format for name, spec in subject.quantized.items()} | dict(subject.rounded)
    for name, number_format in formats.items():
        block = type_of(number_format) if number_format else None
        if block is None or block.name not in _FAST:
            kind = block.name if block else number_format.name if number_format else "no type"
            return f"{name} is in {kind}, and phones are fast at q4_0, q8_0 and iq4_nl; use one of these"
    matrices = {name: spec for name, spec in subject.model.tensors.items() if len(spec.shape) > 1}
    dense = {name: spec.size for name, spec in matrices.items() if name not in formats}
    if sum(dense.values()) > _FEW * subject.model.parameters:
        return f"{max(dense, key=dense.__getitem__)} is not quantized, and phones are slow at that; say type: q8_0"
    return None
