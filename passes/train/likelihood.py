"""What text itself teaches: the cross entropy of the tokens that are to be learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.passes.loss.chunked import chunked_loss
from compress.passes.loss.head import Head, last_hidden
from compress.passes.loss.losses import cross_entropy
from compress.passes.train.examples import Examples
from compress.passes.train.loop import Objective
from compress.passes.train.options import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Likelihood(Objective):
    """Σ −log p(token) over scored tokens, in nats."""

    def __init__(self, student: PreTrainedModel, precision: Precision) -> None:
        super().__init__()
        self.student, self._precision = student, precision
        self._head = Head(student)

    def forward(self, examples: Examples, rows: Tensor) -> Tensor:
        device = self.student.device
        ids, mask = examples.sequences.ids.to(device), examples.sequences.mask
        mask = None if mask is None else mask.to(device, torch.int64)
        scored = examples.scored().to(device)
        following = ids[:, 1:][scored]
        with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            hidden = last_hidden(self.student, ids, mask)[:, :-1][scored]
            return chunked_loss(hidden, self._head, lambda logits, part: cross_entropy(logits, following[part]))
