"""The options that every pass onto a table of sixteen values shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compress.formats.options import PerTensor, resolve
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.tables import Table
from compress.passes.core.targets import Targets

BlockSize = Annotated[int, Field(ge=1)]


class TableOptions(Targets):
    """Four bits through a table, with one scale per block of a row."""

    block_size: PerTensor[BlockSize] = Field(
        64, description="weights of a row that share a table's scale; bitsandbytes has 32, 64, 128, … 4096"
    )
    double_quant: PerTensor[bool] = Field(False, description="store a table's scales in 8 bits (QLoRA)")

    def codebook_format(self, table: Table, name: str) -> CodebookFormat | None:
        """The number format for a module; None leaves it as it is."""
        block_size = resolve(self.block_size, name)
        if block_size is None:
            return None
        return CodebookFormat(table, block_size, bool(resolve(self.double_quant, name)))
