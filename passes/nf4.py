"""Round to nearest onto a table of sixteen values: NF4 (QLoRA, arXiv 2305.14314) and its relatives. No data needed."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from compress.formats.options import PerTensor, plain, resolve
from compress.kernels.numbers.codebook import CodebookFormat, quantize_plainly
from compress.kernels.numbers.tables import Table
from compress.kernels.qtensor import NumberFormat
from compress.passes.core.change import Change
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.options.rounding import SEARCH, RoundingOptions, Search
from compress.passes.options.tables import TableOptions


class NF4(RoundingOptions, TableOptions):
    """Round each weight to the nearest value of a table, as bitsandbytes does: its own codes, bit for bit.

    bitsandbytes' files hold nf4 and fp4; quantile and lloyd_max (textbook tables) only dense export takes.
    """

    table: PerTensor[Table] = Field("nf4", description="`nf4`, `fp4`, `quantile` or `lloyd_max`")
    search: PerTensor[Search] = Field("off", description=SEARCH)

    def number_format(self, name: str) -> NumberFormat | None:
        table: Table | None = resolve(self.table, name)
        return None if table is None else self.codebook_format(table, name)

    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        if plain(self.search) != "off":
            return super().linear(weight, stats, number_format)
        assert isinstance(number_format, CodebookFormat)
        return Change(quantize_plainly(weight, number_format))
