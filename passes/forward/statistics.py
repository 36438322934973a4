"""Statistics: what a pass asks for about the input of linears.

A pass names the classes it needs; the sweep gathers each once for all siblings and shares it (linear_stats.py). A new
statistic is a new class, nothing else. Padded positions never arrive here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

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
    says: ClassVar[str]
    """What it says of the inputs, for messages."""
    square: ClassVar[bool] = False
    """Whether it is a matrix [in, in]."""
    of_energy: ClassVar[bool] = False
    """Whether Σx² of every input, all that an imatrix holds, gives it (`take_energy`)."""

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

    def take_energy(self, energy: Tensor) -> None:
        """Become, once `tokens` is set, that of inputs of which only Σx², `energy` [in] fp32, is known."""
        raise NotImplementedError(f"{type(self).__name__} takes more than the energy of inputs")

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what was added to `other`, the same of other tokens, before `finish`."""

    def finish(self) -> None:  # noqa: B027 - most have nothing to do
        """All tokens were added."""

    @abstractmethod
    def divide(self, scale: Tensor) -> None:
        """Become, in place, the statistic of the inputs x/s, s = `scale` [in] fp32 > 0. After `finish`."""


class Hessian(Statistic):
    """H = Σ xᵀx [in, in] fp32, and the count of tokens it sums over."""

    says = "the products of every two inputs"
    square = True

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.matrix = torch.zeros(in_features, in_features, device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        add_hessian(self.matrix, x)

    @classmethod
    def effort(cls, tokens: int, columns: int, rows: int | None) -> Effort:
        return hessian_effort(tokens, columns)

    def take_energy(self, energy: Tensor) -> None:
        """Its diagonal, zeros beside it: for passes that need no more (`LayerPass.beyond_energy`)."""
        self.matrix.copy_(energy.diag_embed())

    def merge(self, other: Self) -> None:
        self.matrix += other.matrix

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
    says = "the untouched model's inputs beside its own"

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

    def merge(self, other: Self) -> None:
        self.matrix += other.matrix
        if other.gap is not None:
            self.gap = other.gap if self.gap is None else self.gap.add_(other.gap)

    def divide(self, scale: Tensor) -> None:
        self.matrix.div_(scale).div_(scale.unsqueeze(1))
        if self.gap is not None:
            self.gap.div_(scale)


class Energy(Statistic):
    """Σx² of every column, the Hessian's diagonal: `total` [in] fp64."""

    says = "the energy of every input"
    of_energy = True

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.total = torch.zeros(in_features, dtype=torch.float64, device=device)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        self.total += x.square().sum(0, dtype=torch.float64)

    def merge(self, other: Self) -> None:
        self.total += other.total

    def take_energy(self, energy: Tensor) -> None:
        self.total.copy_(energy)

    def divide(self, scale: Tensor) -> None:
        self.total.div_(scale.double().square())


class MeanAbs(Statistic):
    """Σ |x| [in] fp32; `mean` is what AWQ (arXiv 2306.00978) takes a channel's importance from.

    Of inputs of which only the energy is known, the root mean square takes its place.
    """

    says = "the mean size of every input"
    of_energy = True

    def __init__(self, in_features: int, device: torch.device) -> None:
        super().__init__(in_features, device)
        self.total = torch.zeros(in_features, device=device)

    @property
    def mean(self) -> Tensor:
        """The mean magnitude of each input channel [in] fp32."""
        return self.total / max(self.tokens, 1)

    def add(self, x: Tensor, teacher_x: Tensor | None) -> None:
        self.total += x.abs().sum(0)

    def merge(self, other: Self) -> None:
        self.total += other.total

    def take_energy(self, energy: Tensor) -> None:
        self.total.copy_((energy * self.tokens).sqrt())

    def divide(self, scale: Tensor) -> None:
        self.total.div_(scale)
