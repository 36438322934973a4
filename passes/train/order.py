"""Which sequences a step sees: a function of the seed and the step alone, so that a resumed run sees the same.

And how they are parted for its forwards.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.formats.errors import CompressError

if TYPE_CHECKING:
    from compress.passes.core.run import Run


def rows_of(step: int, *, seed: int, count: int, batch: int) -> Tensor:
    """The rows [batch] int64 of `step` among `count`: each epoch is a permutation of its own, and none is cut short.

    The batch of a step that ends an epoch goes on with the next one's.
    """
    drawn = []
    position, left = step * batch, batch
    while left:
        epoch, start = divmod(position, count)
        part = _permutation(seed, epoch, count)[start : start + left]
        drawn.append(part)
        position, left = position + len(part), left - len(part)
    return torch.cat(drawn)


def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(count, generator=generator)


def held_out_rows(rows: Tensor) -> Tensor:
    """How rows of the held-out sequences are called among all: −1, −2, …"""
    return -1 - rows


class MicroBatches:
    """Which of its sequences a process sees in each forward: fewer where memory turns out not to suffice."""

    def __init__(self, run: Run, title: str, at_once: int, forget: Callable[[], None]) -> None:
        """`at_once` sequences in a forward; `forget` drops what one that failed has left, of the training `title`."""
        self._run, self._title, self._at_once, self._forget = run, title, at_once, forget

    def of(self, rows: Tensor) -> list[Tensor]:
        """This process's share of `rows`, in parts for one forward each.

        All processes get as many parts, some of them empty: in each forward they meet.
        """
        index, count = self._run.processes.index, self._run.processes.count
        largest, share = math.ceil(len(rows) / count), rows[index::count]
        return [share[start : start + self._at_once] for start in range(0, largest, self._at_once)]

    def fitting(self, work: Callable[[Tensor], float], rows: Tensor) -> float:
        """`work` on `rows`; from the beginning with half as many at once where memory does not suffice.

        Raises CompressError where one is too many, or several processes would have to halve at the same time.
        """
        largest = max(1, *map(len, self.of(rows)))
        try:
            return work(rows)
        except torch.OutOfMemoryError as error:
            if largest == 1 or self._run.processes.count > 1:
                raise self._too_large(largest) from error
        # Not within the except: only here is what failed free again.
        self._forget()
        self._at_once = math.ceil(largest / 2)
        self._run.reporter.note(
            f"{self._title}: memory does not suffice for {largest} sequences in a forward: {self._at_once} from now "
            f"on (micro_batch: {self._at_once} begins so)"
        )
        return self.fitting(work, rows)

    def _too_large(self, sequences: int) -> CompressError:
        fewer = f"micro_batch: {math.ceil(sequences / 2)}, " if sequences > 1 else ""
        return CompressError(
            f"{self._title}: memory does not suffice for {sequences} of its sequences in a forward",
            f"say {fewer}checkpointing: true, a shorter seq_len, or shard: true and --processes; what was learned so "
            "far is kept",
        )
