"""The options of passes that solve for any number format: which one, and its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.formats.options import PerTensor, resolve
from compress.kernels.codebooks import Table
from compress.kernels.qtensor import NumberFormat
from compress.passes.core.codebook_options import CodebookOptions
from compress.passes.core.int_options import IntOptions


class GridOptions(IntOptions, CodebookOptions):
    """Integers or a table: `bits` to `zero` speak of the former, `block_size` and `double_quant` of the latter."""

    format: PerTensor[Literal["int"] | Table] = Field("int", description="the number format to solve for")

    def number_format(self, name: str) -> NumberFormat | None:
        chosen: Literal["int"] | Table | None = resolve(self.format, name)
        if chosen is None:
            return None
        return super().number_format(name) if chosen == "int" else self.codebook_format(chosen, name)
