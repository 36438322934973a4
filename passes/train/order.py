"""Which sequences a step sees: a function of the seed and the step alone, so that a resumed run sees the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


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
