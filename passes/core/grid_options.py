"""The options of passes that solve for any number format: which one, and its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.formats.options import PerTensor, resolve
from compress.kernels.codebooks import Table
from compress.kernels.float4_format import Float4Format
from compress.kernels.float_format import FloatFormat
from compress.kernels.qtensor import NumberFormat
from compress.passes.core.codebook_options import CodebookOptions
from compress.passes.core.int_options import IntOptions

Named = Literal["fp8", "mxfp4", "nvfp4"]
_NAMED: dict[Named, NumberFormat] = {
    "fp8": FloatFormat("channel"),
    "mxfp4": Float4Format("mxfp4"),
    "nvfp4": Float4Format("nvfp4"),
}


class GridOptions(IntOptions, CodebookOptions):
    """Integers, a table or floats.

    `bits` to `zero` speak of integers, `block_size` and `double_quant` of tables; floats have no options.
    """

    format: PerTensor[Literal["int"] | Table | Named] = Field("int", description="the number format to solve for")

    def number_format(self, name: str) -> NumberFormat | None:
        chosen: Literal["int"] | Table | Named | None = resolve(self.format, name)
        if chosen is None:
            return None
        if chosen == "fp8" or chosen == "mxfp4" or chosen == "nvfp4":
            return _NAMED[chosen]
        return super().number_format(name) if chosen == "int" else self.codebook_format(chosen, name)
