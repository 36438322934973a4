"""Round to nearest: every weight goes to the closest value of its group's grid. No data needed."""

from __future__ import annotations

from torch import Tensor

from compress.kernels.qtensor import NumberFormat, quantize
from compress.passes.core.base import Rewritten
from compress.passes.core.int_options import IntOptions
from compress.passes.core.stats import LinearStats


class RTN(IntOptions):
    """Round each weight to the nearest value of an integer grid. Fast, needs no data, costs the most quality."""

    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Rewritten:
        return Rewritten(quantize(weight, number_format, number_format.fit(weight)))
