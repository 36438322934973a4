"""Round to nearest: every weight goes to the closest value of its group's grid. No data needed."""

from __future__ import annotations

from pydantic import Field

from compress.formats.options import PerTensor
from compress.passes.options.any_format import FormatOptions
from compress.passes.options.rounding import SEARCH, RoundingOptions, Search


class RTN(RoundingOptions, FormatOptions):
    """Round each weight to the nearest value, by default an integer's. Fast, needs no data, costs the most quality."""

    search: PerTensor[Search] = Field("off", description=SEARCH)
