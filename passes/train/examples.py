"""Sequences to learn from, and which of their tokens are to be learned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.passes.model.sequences import Sequences


@dataclass(frozen=True)
class Marked(Sequences):
    """Sequences as they are read. answers [sequences, length] bool: the tokens to be learned; None: all real ones.

    So many of the last are `apart`: of another text, and held out.
    """

    answers: Tensor | None = None
    apart: int = 0

    def sha256(self) -> str:
        """A digest of all that is there; where there are sequences alone, theirs."""
        if self.answers is None and not self.apart:
            return super().sha256()
        answers = b"" if self.answers is None else self.answers.numpy().tobytes()
        apart = f"{self.apart} apart" if self.apart else ""
        return hashlib.sha256(f"{super().sha256()}{apart}".encode() + answers).hexdigest()


@dataclass(frozen=True)
class Examples:
    """answers [n, length] bool: the tokens to be learned; None: all real ones."""

    sequences: Sequences
    answers: Tensor | None = None

    @classmethod
    def of(cls, sequences: Sequences) -> Examples:
        """What a pass has read."""
        answers = sequences.answers if isinstance(sequences, Marked) else None
        return cls(Sequences(sequences.ids, sequences.mask), answers)

    @property
    def count(self) -> int:
        return self.sequences.count

    def pick(self, rows: Tensor) -> Examples:
        mask = None if self.sequences.mask is None else self.sequences.mask[rows]
        return Examples(Sequences(self.sequences.ids[rows], mask), None if self.answers is None else self.answers[rows])

    def scored(self) -> Tensor:
        """[n, length − 1] bool: the positions whose next token counts."""
        real = (
            torch.ones_like(self.sequences.ids, dtype=torch.bool)
            if self.sequences.mask is None
            else self.sequences.mask
        )
        return (real if self.answers is None else real & self.answers)[:, 1:]

    def then(self, more: Examples) -> Examples:
        """These and more of the same length."""
        masks = [each.sequences.mask for each in (self, more)]
        ids = torch.cat([self.sequences.ids, more.sequences.ids])
        mask = None if masks[0] is None or masks[1] is None else torch.cat([masks[0], masks[1]])
        answers = None if self.answers is None or more.answers is None else torch.cat([self.answers, more.answers])
        return Examples(Sequences(ids, mask), answers)

    def parted(self, last: int) -> tuple[Examples, Examples]:
        """All but so many of the last, and these."""
        rows = torch.arange(self.count)
        return self.pick(rows[:-last]), self.pick(rows[-last:])

    def split(self, held_out: int, seed: int) -> tuple[Examples, Examples]:
        """What is learned from, and `held_out` others, chosen by `seed`; each in their order."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        return self.pick(order[held_out:].sort().values), self.pick(order[:held_out].sort().values)
