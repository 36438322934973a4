"""The options of passes that quantize weights and the inputs they are multiplied with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.options import PerTensor, may_be, plain
from compress.kernels.numbers.activations import ActivationFormat, grid_scale
from compress.kernels.qtensor import NumberFormat
from compress.passes.core.base import Tie
from compress.passes.core.change import Change
from compress.passes.forward.input_ranges import Extremes, Histogram, Moments
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Statistic
from compress.passes.model.anatomy import Anatomy
from compress.passes.options.rounding import RoundingOptions

Mode = Literal["dynamic", "static", "none"]
Range = Literal["minmax", "sigma", "percentile", "mse"]
_RANGES: dict[Range, type[Statistic]] = {
    "minmax": Extremes,
    "sigma": Moments,
    "percentile": Histogram,
    "mse": Histogram,
}
Sigma = Annotated[float, Field(gt=0)]
Percent = Annotated[float, Field(gt=0, le=100)]


class InputOptions(RoundingOptions):
    """Weights rounded to nearest, and how engines are to round what comes in.

    A pass after it in the same stage may choose better weights: int8, then gptq with 8 bits per channel.
    """

    activations: PerTensor[Mode] = Field(
        "dynamic", description="inputs rounded at run time: `dynamic` scales, `static` (calibrated) ones, or `none`"
    )
    range: PerTensor[Range] = Field(
        "mse",
        description="of static scales: least squared error (`mse`), `minmax`, `sigma` (μ ± kσ), or `percentile` of |x|",
    )
    sigma: PerTensor[Sigma] = Field(6.0, description="k of `range: sigma`")
    percentile: PerTensor[Percent] = Field(99.99, description="per cent of `range: percentile`")
    smooth: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="SmoothQuant's α: move outliers of the inputs into the weights, through the op before (0.5)",
    )

    @abstractmethod
    def input_format(self) -> ActivationFormat:
        """How inputs are rounded by a pass that was resolved for a module; `activations` is not `none`."""

    def needs(self) -> frozenset[type[Statistic]]:
        wanted = set(super().needs())
        if may_be(self.activations, "static"):
            wanted |= {statistic for name, statistic in _RANGES.items() if may_be(self.range, name)}
        if self.smooth is not None:
            wanted.add(Extremes)
        return frozenset(wanted)

    def prepares(self) -> bool:
        return True

    def scales(self) -> bool:
        return self.smooth is not None

    def input_scale(self, weights: Mapping[str, Tensor], stats: LinearStats, tie: Tie) -> Tensor | None:
        assert self.smooth is not None
        return tie(smoothing_scale(stats[Extremes].columns, list(weights.values()), self.smooth))

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        model = super().plan(model, anatomy)
        rounded = {name: found for name in sorted(self.targets(anatomy)) if (found := self._format_of_input(name))}
        if (embedding := anatomy.embedding.removesuffix(".weight")) in rounded:
            raise RefusedError(
                f"{embedding} is looked up, not multiplied: it has no input that could be rounded",
                f"say so: activations: [{{match: {embedding}, value: none}}, {{value: dynamic}}]",
            )
        scales = {
            f"{name}.input_scale": TensorSpec((1,), "float32")
            for name, number_format in rounded.items()
            if not number_format.dynamic
        }
        return replace(model, tensors={**model.tensors, **scales}, activations={**model.activations, **rounded})

    def _format_of_input(self, name: str) -> ActivationFormat | None:
        step = self.resolved(name)
        return None if step.activations == "none" else step.input_format()

    def linear(self, weight: Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        rounded = replace(super().linear(weight, stats, number_format), target=weight)
        if plain(self.activations) != "static":
            return rounded
        if not stats.tokens:
            return replace(rounded, unmeasured=("input_scale",))
        return replace(rounded, tensors={"input_scale": self._scale(stats)})

    def _scale(self, stats: LinearStats) -> Tensor:
        """The static scale of the inputs: [1] fp32."""
        rule: Range = plain(self.range)
        grid = self.input_format().grid
        reach = {
            "minmax": lambda: stats[Extremes].columns.amax(),
            "sigma": lambda: stats[Moments].reach(plain(self.sigma)),
            "percentile": lambda: stats[Histogram].percentile(plain(self.percentile)),
            "mse": lambda: stats[Histogram].least_error(grid),
        }[rule]()
        return grid_scale(reach, grid).reshape(1)


def smoothing_scale(inputs: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """SmoothQuant (arXiv 2211.10438, equation 4): s = max|x|^α / max|W|^(1 − α) [in] fp32, 1 where either is zero.

    `inputs` [in]: the largest |x| of every column; `weights` [out, in] each.
    """
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    scale = inputs**alpha / columns ** (1 - alpha)
    return torch.where((inputs > 0) & (columns > 0), scale, 1.0)
