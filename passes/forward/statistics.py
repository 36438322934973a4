"""Statistics: what a pass asks for about the input of linears.

A pass names the classes it needs; the sweep gathers each once for all siblings and shares it. A new statistic is a
new class, nothing else. Padded positions never arrive here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.measure.hessian import add_cross, add_hessian, cross_effort, fill_lower, hessian_effort


class Statistic(ABC):
    """Something accumulated over the inputs x [tokens, in] of linears that share them."""

    teacher: ClassVar[bool] = False
    """Whether `add` also wants the same tokens' input in the untouched model."""
    residual: ClassVar[bool] = False
    """Whether `add_gap` is wanted, where there is one linear and its output joins the residual stream."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.tokens = 0

    @abstractmethod
    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        """x, teacher_x: [tokens, in] fp32."""

    @classmethod
    def effort(cls, tokens: int, columns: int, rows: int | None) -> Effort:
        """What it takes for inputs [tokens, columns]; `rows` [out] of the linear if there is one alone."""
        return Effort(elements=3 * tokens * columns)

    def add_gap(self, gap: Tensor, x: Tensor) -> None:  # noqa: B027 - most have no use for it
        """gap [tokens, out] fp32: what the untouched model's residual stream is ahead; x as for `add`."""

    def finish(self) -> None:  # noqa: B027 - most have nothing to do
        """All tokens were added."""

    @abstractmethod
    def divide(self, scale: Tensor) -> None:
        """Become, in place, the statistic of the inputs x/s, s = `scale` [in] fp32 > 0. After `finish`."""


class Hessian(Statistic):
    """H = Σ xᵀx [in, in] fp32, and the count of tokens it sums over."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.matrix = torch.zeros(in_features, in_features, device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        add_hessian(self.matrix, x)

    @classmethod
    def effort(cls, tokens: int, columns: int, rows: int | None) -> Effort:
        return hessian_effort(tokens, columns)

    def finish(self) -> None:
        fill_lower(self.matrix)

    def divide(self, scale: Tensor) -> None:
        self.matrix.div_(scale).div_(scale.unsqueeze(1))


class Drift(Statistic):
    """Σ (x_teacher − x)ᵀx [in, in] fp32: how far the inputs have moved from the untouched model's.

    `gap` is the same of the residual stream that the output is added to: Σ (r_teacher − r)ᵀx [out, in].
    """

    teacher = True
    residual = True

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.matrix = torch.zeros(in_features, in_features, device=device)
        self.gap: Tensor | None = None

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        assert teacher_x is not None
        add_cross(self.matrix, teacher_x, x)

    @classmethod
    def effort(cls, tokens: int, columns: int, rows: int | None) -> Effort:
        inputs = cross_effort(tokens, columns, columns)
        return inputs if rows is None else inputs + cross_effort(tokens, rows, columns)

    def add_gap(self, gap: Tensor, x: Tensor) -> None:
        if self.gap is None:
            self.gap = torch.zeros(gap.shape[1], x.shape[1], device=x.device)
        self.gap.addmm_(gap.T, x)

    def divide(self, scale: Tensor) -> None:
        self.matrix.div_(scale).div_(scale.unsqueeze(1))
        if self.gap is not None:
            self.gap.div_(scale)


class MeanAbs(Statistic):
    """Σ |x| [in] fp32; `mean` is what AWQ (arXiv 2306.00978) takes a channel's importance from."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.total = torch.zeros(in_features, device=device)

    @property
    def mean(self) -> Tensor:
        """The mean magnitude of each input channel [in] fp32."""
        return self.total / max(self.tokens, 1)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        self.total += x.abs().sum(0)

    def divide(self, scale: Tensor) -> None:
        self.total.div_(scale)


S = TypeVar("S", bound=Statistic)


class LinearStats:
    """The statistics of siblings, by their class."""

    def __init__(self, kinds: frozenset[type[Statistic]], in_features: int, device: torch.device) -> None:
        self._statistics = {kind: kind(in_features, device) for kind in kinds}

    def __getitem__(self, kind: type[S]) -> S:
        statistic = self._statistics[kind]
        assert isinstance(statistic, kind)
        return statistic

    @property
    def gathered(self) -> bool:
        """Whether anything was gathered at all; an embedding's inputs, for one, are not."""
        return bool(self._statistics)

    @property
    def tokens(self) -> int:
        """How many tokens the statistics are of."""
        return max((statistic.tokens for statistic in self._statistics.values()), default=0)

    def __contains__(self, kind: type[Statistic]) -> bool:
        return kind in self._statistics

    def add(self, x: Tensor, teacher_x: Tensor | None, gap: Tensor | None = None) -> None:
        """Feed every statistic with x [tokens, in], and with the residual stream's gap [tokens, out].

        An expert that no token of a batch was routed to gets an empty x: that says nothing, and changes nothing.
        """
        if not len(x):
            return
        for statistic in self._statistics.values():
            statistic.tokens += x.shape[0]
            statistic.add(x, teacher_x)
            if gap is not None:
                statistic.add_gap(gap, x)

    def finish(self) -> None:
        """All tokens were added."""
        for statistic in self._statistics.values():
            statistic.finish()

    def divide(self, scale: Tensor) -> None:
        """Become the statistics of the inputs x/s, s = `scale` [in]: in place, for the Hessian is large."""
        for statistic in self._statistics.values():
            statistic.divide(scale)
