"""INT8: weights per output channel, inputs per token at run time or with calibrated scales (W8A8), or not (W8A16).

The scheme of LLM.int8() without its outliers (arXiv 2208.07339, 2.1) and of SmoothQuant (arXiv 2211.10438).
"""

from __future__ import annotations

from torch import Tensor

from compress.formats.options import plain
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat, Params
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.options.inputs import InputOptions


class INT8(InputOptions):
    """Quantize weights to int8 per channel, and what comes in to int8 as well. Half the bytes, integer products."""

    def number_format(self, name: str) -> NumberFormat | None:
        return IntFormat(8, -1)

    def input_format(self) -> ActivationFormat:
        dynamic = plain(self.activations) == "dynamic"
        return ActivationFormat("int8", dynamic, "token" if dynamic else "tensor")

    def params(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Params:
        # Engines expect positive scales; which side of an 8-bit grid is the longer one hardly matters.
        scale = super().params(weight, stats, number_format)["scale"].abs()
        # Unsearched, the largest weight would be a step out of reach where it is positive: reach equally far.
        return {"scale": scale * (256 / 255) if plain(self.search) == "off" else scale}
