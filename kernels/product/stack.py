"""Weights in words, one on top of the other: those of a layer's experts, which one kernel reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from compress.kernels.product.words import TILE, Words

Join = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Stack:
    """`count` weights of one shape and number format. The tensors of `words` have them all, but for `table`: shared.

    So `words.low` is [count, tiles, chunks, 64, 32], and `words.scale` [count, groups, rows].
    """

    count: int
    words: Words

    def __getitem__(self, number: int) -> Words:
        """One of them."""

        def one(tensors: list[Tensor]) -> Tensor:
            return tensors[0][number]

        return _together(self.words, [self.words], one, one)


def stacked(weights: Sequence[Words]) -> Stack | None:
    """All in one; None if they differ in shape or in what codes mean."""
    alike = _alike(weights)
    if alike is None or len({weight.shape for weight in alike}) > 1:
        return None
    return Stack(len(alike), _together(alike[0], alike, torch.stack, torch.stack))


def joined(parts: Sequence[Words]) -> Words | None:
    """One weight of all their rows, in order; None if they differ in more than rows, or those are no whole tiles."""
    alike = _alike(parts)
    if alike is None or any(part.shape[0] % TILE for part in alike[:-1]):
        return None
    whole = replace(alike[0], shape=(sum(part.shape[0] for part in alike), alike[0].shape[1]))
    return _together(whole, alike, torch.cat, partial(torch.cat, dim=1))


def _together(like: Words, weights: Sequence[Words], codes: Join, parameters: Join) -> Words:
    """`like`, with the tensors of all `weights`."""
    return replace(
        like,
        low=codes([weight.low for weight in weights]),
        high=_those(codes, [weight.high for weight in weights]),
        scale=parameters([weight.scale for weight in weights]),
        minimum=_those(parameters, [weight.minimum for weight in weights]),
    )


def _those(join: Join, tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return join(there) if there else None


def _alike(weights: Sequence[Words]) -> list[Words] | None:
    """The same weights, all with minima or none, and with scales of one type; None if codes mean different things."""
    first = weights[0]
    if not all(_same_codes(weight, first) for weight in weights):
        return None
    wide = torch.float32 if any(weight.scale.dtype == torch.float32 for weight in weights) else torch.float16
    least = any(weight.minimum is not None for weight in weights)
    return [
        replace(weight, scale=weight.scale.to(wide), minimum=_minimum(weight) if least else None) for weight in weights
    ]


def _minimum(weight: Words) -> Tensor:
    return weight.scale.float() * 0 if weight.minimum is None else weight.minimum


def _same_codes(one: Words, other: Words) -> bool:
    tables = [torch.zeros(0) if words.table is None else words.table for words in (one, other)]
    kinds = [(words.shape[1], words.group, words.widths, words.center) for words in (one, other)]
    return kinds[0] == kinds[1] and (one.table is None) == (other.table is None) and torch.equal(*tables)
