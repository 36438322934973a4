"""The statistics of siblings, together: what a pass is given to rewrite them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor

from compress.kernels.laps import lap
from compress.kernels.share import WHOLE
from compress.passes.forward.statistics import Statistic

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
