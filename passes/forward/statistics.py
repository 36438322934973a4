"""Statistics: what a pass asks for about the input of linears.

A pass names the classes it needs; the sweep gathers each once for all siblings and shares it. A new statistic is a
new class, nothing else. Padded positions never arrive here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from compress.kernels.effort import Effort
from compress.kernels.laps import lap
from compress.kernels.measure.hessian import add_cross, add_hessian, cross_effort, fill_lower, hessian_effort
from compress.kernels.share import WHOLE


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


S = TypeVar("S", bound=Statistic)


@dataclass(frozen=True)
class Guide:
    """What tokens count for in the statistics `kinds` of each part of the rows of linears (kernels/measure/guide.py).

    `weights` [sequences, length, parts] ≥ 0 by module; parts are those of `Tensor.tensor_split`.
    """

    kinds: frozenset[type[Statistic]]
    weights: Mapping[str, Tensor]


class LinearStats:
    """The statistics of siblings, by their class.

    `share` is the part of this process in what is made of them. `kept` are masks [out, in] bool of siblings that were
    pruned, by module: only where True may a weight be other than 0. With a `guide` there are `parts` as well: by
    module, for each part of its rows the statistics of weighted tokens.
    """

    def __init__(
        self,
        kinds: frozenset[type[Statistic]],
        in_features: int,
        device: torch.device,
        guide: Guide | None = None,
    ) -> None:
        self._statistics = {kind: kind(in_features, device) for kind in kinds}
        self._device = device
        self.kept: Mapping[str, Tensor] = {}
        self.share = WHOLE
        self.parts: dict[str, tuple[LinearStats, ...]] = {}
        if guide:
            for name, weights in guide.weights.items():
                each = range(weights.shape[-1])
                self.parts[name] = tuple(LinearStats(guide.kinds, in_features, device) for _ in each)

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

    def add(
        self,
        x: Tensor,
        teacher_x: Tensor | None,
        gap: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Feed every statistic with x [tokens, in], and with the residual stream's gap [tokens, out].

        `weights` [tokens, parts] ≥ 0, by module, are what tokens count for in `parts`. An expert that no token of a
        batch was routed to gets an empty x: that says nothing, and changes nothing.
        """
        if not len(x):
            return
        for kind, statistic in self._statistics.items():
            statistic.tokens += x.shape[0]
            with lap(kind.__name__, kind.effort(x.shape[0], x.shape[1], None if gap is None else gap.shape[1]).flops):
                statistic.add(x, teacher_x)
                if gap is not None:
                    statistic.add_gap(gap, x)
        for name, weight in (weights or {}).items():
            self._add_parts(self.parts[name], weight.float().sqrt(), x, teacher_x, gap)

    @staticmethod
    def _add_parts(
        parts: Sequence[LinearStats], roots: Tensor, x: Tensor, teacher_x: Tensor | None, gap: Tensor | None
    ) -> None:
        """Sums of products of a token's rows are weighted by a if each of its rows is multiplied by √a."""
        gaps = repeat(None) if gap is None else gap.tensor_split(len(parts), 1)
        for part, root, own in zip(parts, roots.split(1, 1), gaps):
            part.add(x * root, teacher_x if teacher_x is None else teacher_x * root, own if own is None else own * root)

    def take_energy(self, energy: Tensor, tokens: float) -> None:
        """Become those of so many tokens of which Σx², `energy` [in] fp32, alone is known; of none if there are none.

        Counts of an imatrix may be of chunks of text: at least one it is then.
        """
        for statistic in self._statistics.values() if tokens else ():
            statistic.tokens = max(1, round(tokens))
            statistic.take_energy(energy.to(self._device))

    def merge(self, other: LinearStats) -> None:
        """Add what was added to `other`, the same statistics of other tokens, before `finish`."""
        for kind, statistic in self._statistics.items():
            statistic.tokens += other[kind].tokens
            statistic.merge(other[kind])
        for name, parts in self.parts.items():
            for mine, theirs in zip(parts, other.parts[name]):
                mine.merge(theirs)

    def finish(self) -> None:
        """All tokens were added."""
        for statistic in self._all():
            statistic.finish()

    def divide(self, scale: Tensor) -> None:
        """Become the statistics of the inputs x/s, s = `scale` [in]: in place, for the Hessian is large."""
        for statistic in self._all():
            statistic.divide(scale)

    def _all(self) -> Iterator[Statistic]:
        yield from self._statistics.values()
        for parts in self.parts.values():
            for part in parts:
                yield from part._all()


@dataclass(frozen=True)
class Pause:
    """Siblings, at which the forward pauses: where they begin, what statistics they want, what then happens.

    What `rewrite` makes of their statistics `take` puts to use, in each of the processes that share a walk; without it
    `rewrite` does that as well. `residual` is the module within the layer whose input their output is added to, if that
    is wanted. `guide` is what tokens count for, where they do not count alike.
    """

    first: str
    in_features: int
    kinds: frozenset[type[Statistic]]
    rewrite: Callable[[LinearStats], Any]
    residual: str | None = None
    guide: Guide | None = None
    take: Callable[[Any], None] = lambda made: None

    def statistics(self, device: torch.device) -> LinearStats:
        """Those that it wants, of no token yet."""
        return LinearStats(self.kinds, self.in_features, device, self.guide)


def aligned(x: Tensor, tokens: Tensor | None, teacher_x: Tensor, teacher_tokens: Tensor | None) -> Tensor:
    """The teacher's input [tokens, in] for the tokens of `x`; a token that it routes elsewhere counts as not moved."""
    if tokens is None or teacher_tokens is None:
        return teacher_x
    aligned = x.clone()
    mine, same = torch.where(tokens[:, None] == teacher_tokens)
    aligned[mine] = teacher_x[same]
    return aligned
