"""The options of passes that round weights to nearest: where the scales come from."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.formats.options import PerTensor, may_be, plain
from compress.kernels.effort import Effort
from compress.kernels.qtensor import NumberFormat, Params, quantize
from compress.passes.core.change import Change
from compress.passes.core.linear import LinearPass
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Energy, Statistic

Search = Literal["off", "weights", "inputs"]
SEARCH = (
    "scales of weights: from the extreme values (`off`), of the least squared error (`weights`), "
    "or of the least error weighted by the inputs' energy (`inputs`; needs calibration)"
)


class RoundingOptions(LinearPass):
    """Every weight goes to the nearest value."""

    spans: ClassVar[bool] = True

    search: PerTensor[Search] = Field("weights", description=SEARCH)

    def needs(self) -> frozenset[type[Statistic]]:
        return frozenset({Energy}) if may_be(self.search, "inputs") else frozenset()

    def linear_effort(self, shape: tuple[int, ...], number_format: NumberFormat) -> Effort:
        return number_format.effort(shape, searched=plain(self.search) != "off")

    def rewrite(
        self, weight: Tensor, stats: LinearStats, number_format: NumberFormat, kept: Tensor | None = None
    ) -> Change:
        """`linear`, be there statistics or not: where no token came, scales are searched as if inputs were alike."""
        unreached = bool(self.needs()) and stats.gathered and not stats.tokens
        return replace(self.linear(weight, stats, number_format), unreached=unreached)

    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        return Change(quantize(weight, number_format, self.params(weight, stats, number_format)))

    def params(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Params:
        """The number format's parameters for weight [out, in] fp32."""
        return number_format.fit(weight, self._importance(weight, stats))

    def _importance(self, weight: Tensor, stats: LinearStats) -> Tensor | None:
        search = plain(self.search)
        if search == "off":
            return None
        if search == "inputs" and Energy in stats and stats.tokens:  # an embedding has no inputs
            return stats[Energy].total.float()
        return torch.ones(weight.shape[1], device=weight.device)
