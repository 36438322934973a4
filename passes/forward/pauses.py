"""Where a forward pauses, and how what arrives there comes into statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.kernels.half import half_products
from compress.passes.forward.linear_stats import Guide, LinearStats
from compress.passes.forward.statistics import Statistic
from compress.passes.model.flight import Formation
from compress.passes.model.sequences import Sequences


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


class Gathering:
    """Inputs of the `sequences` that pause, fed to statistics on `device`; with `half` in products of bfloat16."""

    def __init__(self, sequences: Sequences, device: torch.device, half: bool) -> None:
        self._sequences, self._device, self._half = sequences, device, half

    def add(self, stats: LinearStats, batch: tuple[int, int], flying: Sequence[Formation], pause: Pause) -> None:
        """Fly on to the next siblings and feed its inputs to `stats`, without padding."""
        arrived = [self._arrival(flight, batch) for flight in flying]
        (x, tokens), teacher = arrived[0], arrived[1:]
        gap = None
        if pause.residual is not None and teacher:
            mine, other = (self._real(flight.note(pause.residual).flatten(0, -2), batch) for flight in flying)
            gap = other - mine
        weights = self._weights(pause.guide, batch, tokens) if pause.guide else None
        with half_products(x.shape[1], self._half):
            stats.add(x, aligned(x, tokens, *teacher[0]) if teacher else None, gap, weights)

    def _weights(self, guide: Guide, batch: tuple[int, int], tokens: Tensor | None) -> Mapping[str, Tensor]:
        """What the tokens of a batch count for [tokens, parts], by module: all that are real, or those given."""
        found = {}
        for name, whole in guide.weights.items():
            weights = whole[slice(*batch)].flatten(0, 1).to(self._device)
            found[name] = self._real(weights, batch) if tokens is None else weights[tokens]
        return found

    def _real(self, x: Tensor, batch: tuple[int, int]) -> Tensor:
        """x [sequences · length, width] without padding."""
        mask = self._sequences.batch(*batch).mask
        return x if mask is None else x[mask.flatten().to(x.device)]

    def _arrival(self, flight: Formation, batch: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The input [tokens, in] of the next siblings, and which tokens of the batch these are (None: all)."""
        x = flight.next().flatten(0, -2)
        mask, tokens = self._sequences.batch(*batch).mask, flight.tokens
        if mask is not None:
            real = mask.flatten().to(x.device)
            real = real if tokens is None else real[tokens]
            x, tokens = x[real], None if tokens is None else tokens[real]
        return x, tokens


def aligned(x: Tensor, tokens: Tensor | None, teacher_x: Tensor, teacher_tokens: Tensor | None) -> Tensor:
    """The teacher's input [tokens, in] for the tokens of `x`; a token that it routes elsewhere counts as not moved."""
    if tokens is None or teacher_tokens is None:
        return teacher_x
    aligned = x.clone()
    mine, same = torch.where(tokens[:, None] == teacher_tokens)
    aligned[mine] = teacher_x[same]
    return aligned
