"""Number formats and the one quantized thing that travels inside the program.

A `NumberFormat` says what real values codes can stand for. It knows nothing of files (containers) and
nothing of how codes are chosen (algorithms). It is defined elementwise, so that any algorithm runs on any
format: `expand` spreads the parameters over the whole weight, `round` and `value` then work on equal
shapes, be that a whole matrix or a single column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Params = Mapping[str, Tensor]


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
    def rows_apart(self) -> bool:
        """Whether every parameter belongs to one row, so that a weight may be cut, or stacked, by rows."""
        return True

    @property
    def gain(self) -> str | None:
        """The parameter that all values of a group of columns are proportional to, if there is one."""
        return None

    @abstractmethod
    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why a tensor of this shape cannot have this format, or None if it can."""

    @abstractmethod
    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and torch dtype name of every parameter of a weight of this shape."""

    def groups(self, shape: tuple[int, ...]) -> int:
        """How many groups of neighbouring columns a row has, each with a scale of its own (`scale` [rows, groups])."""
        return self.param_shapes(shape)["scale"][0][1]

    @abstractmethod
    def fit(self, weight: Tensor, importance: Tensor | None = None) -> Params:
        """Parameters for `weight` [rows, columns] fp32.

        `importance` [columns] fp32 ≥ 0, where given, asks for parameters that minimise
        Σ importance·(w − ŵ)²; without it the range is the group's extreme values.
        """

    @abstractmethod
    def expand(self, params: Params, shape: tuple[int, ...]) -> Params:
        """The parameters of every single weight of a matrix of this `shape` [rows, columns]: each so, in fp32."""

    @abstractmethod
    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        """The nearest codes, as integral fp32 values 0 … levels − 1; shapes as `weight`."""

    @abstractmethod
    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        """The real values (fp32) that fp32 codes stand for; shapes as `codes`."""

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
    """codes [rows, columns] uint8 + the parameters that give them a meaning."""

    format: NumberFormat
    codes: Tensor
    params: Params

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    def times_rows(self, factors: Tensor) -> QTensor | None:
        """Row i times `factors[i]` ([rows] fp32 > 0), up to the rounding of stored parameters; None if it cannot be."""
        params = self.format.times_rows(self.params, factors)
        return None if params is None else QTensor(self.format, self.codes, params)

    def dequantize(self) -> Tensor:
        """The values [rows, columns] in fp32."""
        expanded = self.format.expand(self.params, self.shape)
        return self.format.value(self.codes.float(), expanded)


def quantize(weight: Tensor, number_format: NumberFormat, params: Params) -> QTensor:
    """Round `weight` [rows, columns] to the nearest value of `number_format`, weight by weight."""
    expanded = number_format.expand(params, tuple(weight.shape))
    return QTensor(number_format, number_format.round(weight, expanded).byte(), params)
