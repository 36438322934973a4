"""Text of the model's own: how each sequence begins that the model is to go on with.

In a blend it begins as the other texts do, so that what the model writes is of their domain; of chats whose answers
are learned, with all that comes before the first answer, so that the model gives its own. Alone it begins with the
token that the tokenizer puts in front of a text, or where there is none, with any token (arXiv 2305.17888, LLM-QAT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from compress.passes.forward.texts.cut import Cut, bos, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEW = 8
"""Tokens that say what a text is about, and leave the rest to the model."""


def begun(
    tokenizer: PreTrainedTokenizerBase, count: int, length: int, others: Sequence[Cut] = (), padded: bool = False
) -> Cut:
    """`count` sequences of `length` tokens for the model to write, that begin as those of `others`, evenly chosen."""
    mask = torch.ones(count, length, dtype=torch.bool) if padded else None
    if not others:
        front = torch.tensor(bos(tokenizer), dtype=torch.int64)
        ids = pad(front, (0, length - len(front))).repeat(count, 1)
        return Cut(ids, mask, begun=torch.full((count,), len(front)))
    given = joined(others)
    rows = torch.arange(count) * len(given.ids) // count
    starts = _starts(given)[rows]
    left = torch.arange(length) >= starts[:, None]
    return Cut(given.ids[rows].masked_fill(left, 0), mask, None if given.answers is None else left, starts)


def _starts(cut: Cut) -> Tensor:
    """Where the model takes over [sequences]: at the first answer, else after a few tokens; never after the last."""
    sequences, length = cut.ids.shape
    few = torch.full((sequences,), _FEW)
    starts = few if cut.answers is None else torch.maximum(cut.answers.long().argmax(1), few)
    real = torch.full((sequences,), length) if cut.mask is None else cut.mask.sum(1)
    return torch.minimum(starts, real).clamp(max=length - 1)
