"""The options of passes that solve for any number format: which one, and its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.formats.options import PerTensor, resolve
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.tables import Table
from compress.kernels.qtensor import NumberFormat
from compress.passes.options.integers import IntegerOptions
from compress.passes.options.tables import TableOptions

Named = Literal["fp8", "mxfp4", "nvfp4"]
_NAMED: dict[Named, NumberFormat] = {
    "fp8": FloatFormat("channel"),
    "mxfp4": Float4Format("mxfp4"),
    "nvfp4": Float4Format("nvfp4"),
}


class FormatOptions(IntegerOptions, TableOptions):
    """Integers, a table or floats.

    `bits` to `zero` speak of integers, `block_size` and `double_quant` of tables; floats have no options.
    """

    format: PerTensor[Literal["int"] | Table | Named] = Field("int", description="the number format to solve for")

    def integral(self, name: str) -> bool:
        return resolve(self.format, name) == "int"

    def number_format(self, name: str) -> NumberFormat | None:
        chosen: Literal["int"] | Table | Named | None = resolve(self.format, name)
        if chosen is None:
            return None
        if chosen == "fp8" or chosen == "mxfp4" or chosen == "nvfp4":
            return _NAMED[chosen]
        return super().number_format(name) if chosen == "int" else self.codebook_format(chosen, name)
