"""Sequences of tokens: what calibration and evaluation run through a model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Amount:
    """So many sequences of one length, and how many of their tokens are no padding."""

    count: int
    length: int
    tokens: int


@dataclass(frozen=True)
class Sequences:
    """ids [sequences, length] int64; mask [sequences, length] bool where sequences are padded (True = a real token).

    begun [sequences] int64: so many tokens of each are there, and the model is to write the rest; None: all are there.
    """

    ids: Tensor
    mask: Tensor | None = None
    begun: Tensor | None = None

    @property
    def count(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """How many real tokens there are."""
        return self.ids.numel() if self.mask is None else int(self.mask.sum())

    @property
    def amount(self) -> Amount:
        return Amount(self.count, self.length, self.tokens)

    def batch(self, start: int, stop: int) -> Sequences:
        """Sequences `start` to `stop`."""
        return Sequences(self.ids[start:stop], None if self.mask is None else self.mask[start:stop])

    def sha256(self) -> str:
        """A digest of all that is there: names the data of a run in its manifest."""
        digest = hashlib.sha256(self.ids.to(torch.int64).numpy().tobytes())
        for more in (self.mask, self.begun):
            if more is not None:
                digest.update(more.numpy().tobytes())
        return digest.hexdigest()
