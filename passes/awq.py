"""AWQ (arXiv 2306.00978): scale input channels by their activations, fold the scale into the op before, clip, round.

Followed by another pass in the same stage, as `gptq`, it hands on the scaled and clipped weights unrounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor

from compress.formats.options import PerTensor, plain
from compress.kernels.effort import Effort
from compress.kernels.qtensor import NumberFormat, quantize
from compress.kernels.solve.awq import (
    clip,
    clip_effort,
    clipped_params,
    grid,
    power_scale,
    scale_effort,
    scaled_error,
    weight_share,
)
from compress.passes.core.base import Tie
from compress.passes.core.change import Change
from compress.passes.core.linear import LinearPass
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Hessian, MeanAbs, Statistic
from compress.passes.options.any_format import FormatOptions

Gamma = Annotated[float, Field(ge=0, le=1)]


class AWQ(FormatOptions, LinearPass):
    """Spare the input channels that carry large activations. Needs data; may go before gptq, too."""

    symmetric: PerTensor[bool] = Field(False, description="no zero point; AWQ files hold either")
    search: bool = Field(True, description="try 40 scales and keep the one with the least error of the outputs")
    gamma: Gamma = Field(0.5, description="without search: channels are scaled by mean|x|^gamma")
    clip: PerTensor[bool] = Field(True, description="cut each group's range where the outputs err least")

    def needs(self) -> frozenset[type[Statistic]]:
        return frozenset({Hessian, MeanAbs})

    def beyond_energy(self) -> frozenset[type[Statistic]]:
        """Scales and ranges are compared by the errors of outputs: the diagonal gives those of unrelated inputs."""
        return super().beyond_energy() - {Hessian}

    def scales(self) -> bool:
        return True

    def prepares(self) -> bool:
        return True

    def input_scale(self, weights: Mapping[str, Tensor], stats: LinearStats, tie: Tie) -> Tensor | None:
        magnitude = stats[MeanAbs].mean
        if not self.search:
            return tie(power_scale(magnitude, self.gamma))
        hessian = stats[Hessian].matrix
        formats = {name: self._grid(name) for name in weights}
        first = next(iter(weights))
        share = weight_share(weights.values(), formats[first].groups(tuple(weights[first].shape)))
        tried = [tie(scale) for scale in grid(magnitude, share)]

        def error(scale: Tensor) -> float:
            return sum(scaled_error(weight, hessian, formats[name], scale) for name, weight in weights.items())

        errors = stats.share.each([partial(error, scale) for scale in tried])
        return tried[errors.index(min(errors))]

    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        if Hessian not in stats:  # an embedding: its inputs are one-hot, and every row stands for itself
            return Change(quantize(weight, number_format, number_format.fit(weight)), notes={"fallback": "rtn"})
        if not plain(self.clip):
            return Change(quantize(weight, number_format, number_format.fit(weight)), target=weight)
        params = clipped_params(weight, stats[Hessian].matrix, number_format)
        return Change(quantize(weight, number_format, params), target=clip(weight, number_format, params))

    def linear_effort(self, shape: tuple[int, ...], number_format: NumberFormat) -> Effort:
        rounding = clip_effort(shape, number_format) if plain(self.clip) else number_format.effort(shape, False)
        return rounding + scale_effort(shape, number_format) if self.search else rounding

    def _grid(self, name: str) -> NumberFormat:
        number_format = self.number_format(name)
        assert number_format is not None
        return number_format
