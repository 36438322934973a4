"""Number formats and the one quantized thing that travels inside the program.

A `NumberFormat` says what real values codes can stand for. It knows nothing of files (containers) and
nothing of how codes are chosen (algorithms). It is defined elementwise, so that any algorithm runs on any
format: `expand` spreads the parameters over the whole weight, `round` and `value` then work on equal
shapes, be that a whole matrix or a single column, or on groups beside one parameter of each. Where neighbouring
weights share a code (`span`), they work on whole rows.

Training moves the real numbers among the parameters (`reals`). Spread over the weight they are called `scale` and
`minimum`, and values are linear in them: scale · (what the code stands for) + minimum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.rows import FEW, rows_at_once

Params = Mapping[str, Tensor]

_FAR = 1e9
_ODD = {"scale": torch.tensor([0.7]), "minimum": torch.tensor([-0.3]), "zero": torch.tensor([1.0])}
_UNIT = {"scale": torch.ones(2), "minimum": torch.zeros(2), "zero": torch.zeros(2)}


class NumberFormat(ABC):
    """What real values the codes of one weight matrix [rows, columns] can stand for.

    Subclasses are frozen dataclasses: two formats are the same if they compare equal.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for tables, as `int4 g64 symmetric`."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """How many codes there are; codes run from 0 to levels − 1."""

    @property
    def span(self) -> int:
        """How many neighbouring weights of a row share one code: 1, but 4 or 8 for GGUF's IQ types."""
        return 1

    @property
    def codes_dtype(self) -> torch.dtype:
        """The whole-number type of codes: uint8, or int16 where 256 levels do not suffice."""
        return torch.uint8

    @property
    def rows_apart(self) -> bool:
        """Whether every parameter belongs to one row, so that a weight may be cut, or stacked, by rows."""
        return True

    @property
    def levers(self) -> tuple[str, ...]:
        """Parameters that values are linear in, and 0 without: [rows, groups] each, as many, one for its columns."""
        return ()

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a tensor of this shape cannot have this format, or None if it can."""
        if len(shape) != 2 or 0 in shape:
            return f"{self.name} holds matrices [rows, columns], not a tensor of shape {list(shape)}"
        return self.columns_misfit(shape[1])

    def columns_misfit(self, columns: int) -> str | None:
        """Why a row of so many columns cannot have this format, and what would fit; None if it can."""
        return None

    @abstractmethod
    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and torch dtype name of every parameter of a weight of this shape."""

    def groups(self, shape: tuple[int, ...]) -> int:
        """How many groups of neighbouring columns a row has, each with a scale of its own (`scale` [rows, groups])."""
        return self.param_shapes(shape)["scale"][0][1]

    def fit(self, weight: Tensor, importance: Tensor | None = None) -> Params:
        """Parameters for `weight` [rows, columns] fp32.

        `importance` [columns] fp32 ≥ 0, where given, asks for parameters that minimise
        Σ importance·(w − ŵ)²; without it the range is the group's extreme values.
        Raises ValueError for a shape that does not fit, for NaN or Inf, and for what parameters cannot hold.
        """
        if reason := self.misfit(tuple(weight.shape)):
            raise ValueError(reason)
        if not all(bool(end.isfinite()) for end in weight.aminmax()):  # one pass; NaN comes through it
            raise ValueError("the weight holds NaN or Inf")
        if importance is not None:
            # Only ratios matter; with a mean of 1 no square leaves the range of float32.
            importance = importance / importance.mean().clamp(min=1e-30)
        return self._fit(weight, importance)

    @abstractmethod
    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        """`fit` of a finite weight whose shape fits; the mean of `importance` is 1, or it is 0 everywhere."""

    def search(self, weight: Tensor, importance: Tensor | None = None) -> QTensor:
        """Parameters and codes together, for what `fit` asks; formats whose two depend on each other say how."""
        return quantize(weight, self, self.fit(weight, importance))

    def effort(self, shape: tuple[int, ...], searched: bool) -> Effort:
        """What it takes to fit parameters, `searched` for an importance or not, and to round to them.

        Measured on integers; formats that try less or more say so.
        """
        return Effort(elements=(130 if searched else 24) * shape[0] * shape[1])

    def expand(self, params: Params, shape: tuple[int, ...]) -> Params:
        """The parameters of every single weight of a matrix of this `shape` [rows, columns]: each so, in fp32."""
        return self.spread(params, self.reals(params), shape)

    def reals(self, params: Params) -> dict[str, Tensor]:
        """The real numbers among `params` that training may move, fp32, as values are computed with; {} if none."""
        return {}

    def stored(self, params: Params, reals: Params) -> Params:
        """`params` with `reals` in the place of their own, rounded as they are stored.

        They are kept finite, and scales off zero and of the sign that they have in `params`. What has not been moved
        comes back bit for bit.
        """
        return params

    def spread(self, params: Params, reals: Params, shape: tuple[int, ...]) -> Params:
        """`expand` with `reals` in the place of those of `params`: differentiable in them, and in their dtype."""
        return {name: _repeated(value, shape[1]) for name, value in self.grouped(params, reals).items()}

    def grouped(self, params: Params, reals: Params) -> Params:
        """What `spread` repeats: [rows, groups] each, one for the neighbouring columns of a group, all as many.

        Formats whose parameters span rows (`rows_apart`) spread them in a way of their own.
        """
        return reals

    @cached_property
    def ends(self) -> tuple[int, int] | None:
        """The codes that the lowest and the highest weights go to under a scale > 0; None if codes span columns."""
        if self.span > 1:
            return None
        lowest, highest = self.round(torch.tensor([-_FAR, _FAR]), _UNIT)
        return int(lowest), int(highest)

    @cached_property
    def step(self) -> float:
        """How far neighbouring values lie apart on average, in scales; 1 if codes span columns."""
        if self.ends is None:
            return 1.0
        lowest, highest = self.value(torch.tensor(self.ends, dtype=torch.float32), _UNIT)
        return float(highest - lowest) / (self.levels - 1)

    @cached_property
    def holds_zero(self) -> bool:
        """Whether 0 rounds to exactly 0, whatever the parameters: what was pruned stays so. No, if codes span columns.

        A grid that begins at a real minimum has its values where that puts them.
        """
        return self.span == 1 and float(self.value(self.round(torch.zeros(1), _ODD), _ODD)) == 0

    @abstractmethod
    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        """The nearest codes, as integral fp32 values 0 … levels − 1; shapes as `weight`, a `span`th of its columns."""

    @abstractmethod
    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        """The real values (fp32) that fp32 codes stand for; shapes as `codes`, `span` times its columns."""

    def times_rows(self, params: Params, factors: Tensor) -> Params | None:
        """Parameters of the same codes with row i times `factors[i]` ([rows] fp32 > 0), rounded as they are stored.

        None if the format has no such parameters, or they would leave its range.
        """
        return None

    @abstractmethod
    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Information per weight in bits, parameters included, whatever container holds it."""


@dataclass(frozen=True)
class QTensor:
    """codes [rows, columns / span] of the format's `codes_dtype` + the parameters that give them a meaning."""

    format: NumberFormat
    codes: Tensor
    params: Params

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, columns] of the weight."""
        rows, codes = self.codes.shape
        return rows, codes * self.format.span

    def to(self, device: torch.device) -> QTensor:
        """The same on `device`."""
        params = {name: value.to(device) for name, value in self.params.items()}
        return QTensor(self.format, self.codes.to(device), params)

    def rows(self, part: slice) -> QTensor:
        """Some rows of a weight whose rows stand apart (`rows_apart`)."""
        params = {name: value[part] for name, value in self.params.items()}
        return QTensor(self.format, self.codes[part], params)

    def times_rows(self, factors: Tensor) -> QTensor | None:
        """Row i times `factors[i]` ([rows] fp32 > 0), up to the rounding of stored parameters; None if it cannot be."""
        params = self.format.times_rows(self.params, factors)
        return None if params is None else QTensor(self.format, self.codes, params)

    def dequantize(self) -> Tensor:
        """The values [rows, columns] in fp32."""
        expanded = self.format.expand(self.params, self.shape)
        return self.format.value(self.codes.float(), expanded)


def _repeated(grouped: Tensor, columns: int) -> Tensor:
    """[rows, groups] as [rows, columns]; of a single group that is a view."""
    return grouped.unsqueeze(-1).expand(-1, -1, columns // grouped.shape[1]).flatten(1)


def quantize(weight: Tensor, number_format: NumberFormat, params: Params) -> QTensor:
    """Round `weight` [rows, columns] to the nearest value of `number_format`, weight by weight."""
    if not number_format.rows_apart:
        return QTensor(number_format, _codes(weight, number_format, params), params)
    step = rows_at_once(weight.shape[1], weight.device, FEW)
    parts = [slice(at, at + step) for at in range(0, len(weight), step)]
    codes = [_codes(weight[part], number_format, {name: p[part] for name, p in params.items()}) for part in parts]
    return QTensor(number_format, torch.cat(codes), params)


def _codes(weight: Tensor, number_format: NumberFormat, params: Params) -> Tensor:
    expanded = number_format.expand(params, tuple(weight.shape))
    return number_format.round(weight, expanded).to(number_format.codes_dtype)
