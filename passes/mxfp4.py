"""MXFP4 weights (OCP Microscaling Formats 1.0): E2M1, 32 columns share a power of two. 4.25 bits per weight."""

from __future__ import annotations

from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.qtensor import NumberFormat
from compress.passes.options.rounding import RoundingOptions


class MXFP4(RoundingOptions):
    """Round weights to FP4 in blocks of 32 with a power of two as scale. No data needed."""

    def number_format(self, name: str) -> NumberFormat | None:
        return Float4Format("mxfp4")
