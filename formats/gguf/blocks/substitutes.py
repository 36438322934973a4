"""The type that a matrix gets whose rows the one that was asked for does not divide.

As llama.cpp chooses it: `src/llama-quant.cpp`, October 2026, tensor_type_fallback.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import gguf

_SUBSTITUTES = {
    "q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl",
    "tq1_0": "q4_0", "tq2_0": "q4_0",
}  # fmt: skip
SUPER_BLOCK = 256
_BLOCK = 32


class Substitute(NamedTuple):
    """The type `found` for the type `wanted`, whose super-blocks do not divide rows of so many columns.

    `why`: another reason than that.
    """

    wanted: str
    found: str
    columns: int
    why: str = ""

    @property
    def reason(self) -> str:
        return self.why or f"{self.columns} columns are no super-blocks"


def fitting(kind: str, columns: int) -> str:
    """`kind`, or what llama.cpp takes for it where its super-blocks do not divide rows of so many columns."""
    if kind not in _SUBSTITUTES or columns % SUPER_BLOCK == 0:
        return kind
    return "f16" if columns % _BLOCK else _SUBSTITUTES[kind]


def substitutes_told(counts: Mapping[Substitute, int]) -> tuple[str, ...]:
    """A line for each kind of substitute: how many matrices have it, and what that does to their bits per weight."""
    return tuple(
        f"{count} matri{'x' if count == 1 else 'ces'} in {each.found}, not {each.wanted}: {each.reason} "
        f"({_bits(each.found):.3g} bits per weight, not {_bits(each.wanted):.3g})"
        for each, count in sorted(counts.items())
    )


def _bits(kind: str) -> float:
    """Bits per weight of a type."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    return float(8 * size / block)
