"""NVFP4 weights: E2M1, 16 columns share an FP8 scale, all of the tensor another. 4.5 bits per weight."""

from __future__ import annotations

from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.qtensor import NumberFormat
from compress.passes.options.rounding import RoundingOptions


class NVFP4(RoundingOptions):
    """Round weights to FP4 in blocks of 16 with an FP8 scale. Finer than mxfp4; no data needed."""

    def number_format(self, name: str) -> NumberFormat | None:
        return Float4Format("nvfp4")
