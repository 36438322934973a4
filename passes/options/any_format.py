"""The options of passes for any number format: which one, and its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.formats.options import PerTensor, resolve
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.half_tables import HalfTableFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.numbers.tables import Table
from compress.kernels.qtensor import NumberFormat
from compress.passes.options.integers import IntegerOptions
from compress.passes.options.tables import TableOptions

Float = Literal["fp8", "mxfp4", "nvfp4"]
GGMLType = Literal[
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0"
]  # fmt: skip
_NAMED: dict[Float | GGMLType, NumberFormat] = {
    "fp8": FloatFormat("channel"),
    "mxfp4": Float4Format("mxfp4"),
    "nvfp4": Float4Format("nvfp4"),
    "q4_0": IntFormat(4, 32, "middle"),
    "q4_1": IntFormat(4, 32, "real"),
    "q5_0": IntFormat(5, 32, "middle"),
    "q5_1": IntFormat(5, 32, "real"),
    "q8_0": IntFormat(8, 32, "middle"),
    "q2_k": KAffineFormat("q2_k"),
    "q3_k": KScaledFormat("q3_k"),
    "q4_k": KAffineFormat("q4_k"),
    "q5_k": KAffineFormat("q5_k"),
    "q6_k": KScaledFormat("q6_k"),
    "iq4_nl": HalfTableFormat("iq4_nl"),
    "iq4_xs": KScaledFormat("iq4_xs"),
    "tq1_0": HalfTableFormat("tq1_0"),
    "tq2_0": HalfTableFormat("tq2_0"),
}


class FormatOptions(IntegerOptions, TableOptions):
    """Integers, a table, floats or a type of GGUF's.

    `bits` to `zero` speak of integers, `block_size` and `double_quant` of tables; the others have no options.
    """

    format: PerTensor[Literal["int"] | Table | Float | GGMLType] = Field(
        "int", description="the number format; GGUF's are named as there: q4_k, q6_k, q8_0"
    )

    def integral(self, name: str) -> bool:
        return resolve(self.format, name) == "int"

    def number_format(self, name: str) -> NumberFormat | None:
        chosen: Literal["int"] | Table | Float | GGMLType | None = resolve(self.format, name)
        match chosen:
            case None:
                return None
            case "int":
                return super().number_format(name)
            case "nf4" | "fp4" | "quantile" | "lloyd_max":
                return self.codebook_format(chosen, name)
            case _:
                return _NAMED[chosen]
