"""FP8, E4M3 (arXiv 2209.05433): weights per tensor, channel or 128×128 block; inputs rounded at run time, or not.

Scales per block go with dynamic inputs per 128 columns of a token, as in DeepSeek-V3 (arXiv 2412.19437, 3.3).
"""

from __future__ import annotations

from pydantic import Field

from compress.formats.options import PerTensor, plain, resolve
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.float import FloatFormat, Region
from compress.kernels.qtensor import NumberFormat
from compress.passes.options.inputs import InputOptions


class FP8(InputOptions):
    """Quantize weights to FP8, and what comes in as well. For GPUs that multiply FP8 (Hopper, Ada and later)."""

    per: PerTensor[Region] = Field("channel", description="what shares a weight scale: `tensor`, `channel`, `block`")

    def number_format(self, name: str) -> NumberFormat | None:
        per: Region | None = resolve(self.per, name)
        return None if per is None else FloatFormat(per)

    def input_format(self) -> ActivationFormat:
        if plain(self.activations) == "static":
            return ActivationFormat("fp8", False, "tensor")
        return ActivationFormat("fp8", True, "group" if plain(self.per) == "block" else "token")
