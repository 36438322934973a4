"""How sequences go through a layer: how many together, and whether all pause where something is rewritten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

BATCH_TOKENS = 4096
"""Tokens per forward: enough to keep matrix products efficient, few enough to keep activations small."""
_SMALLER = 4
"""So many times fewer, where memory is short."""
_LEAST_TOKENS = 1024
"""So many where all are few: for several processes to have some each."""
SHARES = 8
"""Of how many parts of the batches statistics are summed up apart: more processes than that cannot share them."""


@dataclass(frozen=True)
class Flow:
    """How sequences go through a layer: `tokens` together; with `hold` all pause at siblings, and one forward does."""

    tokens: int = BATCH_TOKENS
    hold: bool = True

    def batches(self, count: int, length: int) -> list[tuple[int, int]]:
        """(start, stop) of the sequences, of `count`, that run together, and of which statistics are added at once."""
        step = max(1, min(self.tokens, max(_LEAST_TOKENS, count * length // SHARES)) // max(1, length))
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def shares(self, batches: int) -> list[range]:
        """The batches, by number, of which statistics are summed up apart before those sums are added up in order.

        That depends on nothing else, so whoever takes a share the sums are the same, bit for bit. Where statistics
        of a whole layer are gathered at once, memory is short, and they are summed up as one.
        """
        parts = max(1, min(batches, SHARES)) if self.hold else 1
        bounds = [batches * part // parts for part in range(parts + 1)]
        return [range(start, stop) for start, stop in pairwise(bounds)]


FASTEST = Flow()


def flows(length: int, statistics: bool) -> Iterator[Flow]:
    """The fastest first: a second forward takes longer than small batches, which end at one sequence of `length`.

    A second one is of use where `statistics` are gathered alone.
    """
    for hold in (True, False) if statistics else (True,):
        tokens = BATCH_TOKENS
        yield Flow(tokens, hold)
        while tokens > length:
            tokens //= _SMALLER
            yield Flow(tokens, hold)
