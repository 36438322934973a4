"""What an importance matrix says of one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.formats.errors import InputError


@dataclass(frozen=True)
class Entry:
    """Σx² over the inputs of the matrices in one tensor, one behind the other, and over how many tokens each.

    `sums` [matrices · columns] fp32 ≥ 0; `counts` [matrices] fp32 ≥ 0, or [1] for all of them alike. In files of the
    old form counts are chunks of text: ratios are what they mean. `where` is for messages: file and tensor.
    """

    sums: Tensor
    counts: Tensor
    where: str

    def __post_init__(self) -> None:
        for what, values in (("sums of squares", self.sums), ("counts", self.counts)):
            if not values.numel() or not bool((values.isfinite() & (values >= 0)).all()):
                raise InputError(f"{self.where}: {what} that are missing, negative, NaN or Inf", _DAMAGED)
        if self.sums.numel() % self.counts.numel():
            raise InputError(
                f"{self.where}: {self.counts.numel():,} counts do not divide {self.sums.numel():,} sums", _DAMAGED
            )

    def matrix(self, number: int, of: int, columns: int) -> tuple[Tensor, float]:
        """Σx² [columns] fp32 of matrix `number` among `of`, and the tokens it is of: 0 if none came to it.

        Raises InputError if the tensor has not that many matrices of so many columns.
        """
        if self.sums.numel() != of * columns or self.counts.numel() not in (1, of):
            held = f"{self.sums.numel():,} values and {self.counts.numel():,} counts"
            raise InputError(
                f"{self.where}: {held}, and the model has {of:,} matrices of {columns:,} columns there",
                "give the imatrix of this very model, with the shapes it has by now",
            )
        count = float(self.counts[number if self.counts.numel() == of else 0])
        return self.sums.view(of, columns)[number], count


def entry(where: str, sums: Tensor, counts: Tensor) -> Entry:
    """An Entry of tensors of any shape. Raises InputError for what no sum of squares, or no count, can be."""
    return Entry(sums.reshape(-1).to(torch.float32), counts.reshape(-1).to(torch.float32), where)


_DAMAGED = "the file is damaged or not what it claims to be"
