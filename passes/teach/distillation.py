"""What a student is to learn of a teacher: its distribution of the next token, its hidden states, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.passes.loss.chunked import chunked_loss
from compress.passes.loss.head import Head, hidden_states, last_hidden
from compress.passes.loss.losses import LogitLoss, Target
from compress.passes.teach.cached import Answers
from compress.passes.teach.features import FeatureLoss
from compress.passes.train.examples import Examples
from compress.passes.train.loop import Objective
from compress.passes.train.options import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Targets = Callable[[slice], Target]


class Distillation(Objective):
    """Σ over scored tokens of the logit loss + `feature_weight` · the feature loss; either may be absent.

    The teacher was asked before (`Answers`), or is run beside the student, and does not learn.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | Answers,
        logit: LogitLoss | None,
        features: FeatureLoss | None,
        feature_weight: float,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.student, self.features = student, features
        self._teacher = _Live(teacher, logit) if isinstance(teacher, nn.Module) else teacher
        self._logit, self._feature_weight, self._precision = logit, feature_weight, precision
        self._head = Head(student)

    def forward(self, examples: Examples, rows: Tensor) -> Tensor:
        device = self.student.device
        ids, mask = examples.sequences.ids.to(device), examples.sequences.mask
        mask = None if mask is None else mask.to(device, torch.int64)
        scored = examples.scored().to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            states = _states(self.student, ids, mask, scored, every=self.features is not None)
            if isinstance(self._teacher, _Live):
                taught = self._teacher.states(ids, mask, scored, every=self.features is not None)
                targets = self._teacher.targets(taught[-1])
            else:
                taught, targets = [], self._teacher.targets(examples.scored(), rows)
            loss = torch.zeros((), device=device)
            if self._logit is not None:
                loss = loss + self._logits(states[-1], targets, ids[:, 1:][scored], self._logit)
            if self.features is not None:
                loss = loss + self._feature_weight * self.features(states, taught).sum()
        return loss

    def _logits(self, hidden: Tensor, targets: Targets, following: Tensor, loss: LogitLoss) -> Tensor:
        return chunked_loss(hidden, self._head, lambda logits, part: loss(logits, targets(part), following[part]))


class _Live(nn.Module):
    """A teacher in memory."""

    def __init__(self, model: PreTrainedModel, loss: LogitLoss | None) -> None:
        super().__init__()
        self._model, self._head, self._loss = model, Head(model), loss or LogitLoss()

    @torch.no_grad()
    def states(self, ids: Tensor, mask: Tensor | None, scored: Tensor, every: bool) -> Sequence[Tensor]:
        return _states(self._model, ids, mask, scored, every)

    def targets(self, hidden: Tensor) -> Targets:
        """Of the last hidden states [tokens, width]."""

        def target(part: slice) -> Target:
            with torch.no_grad():
                return self._loss.target(self._head(hidden[part]))

        return target


def _states(model: PreTrainedModel, ids: Tensor, mask: Tensor | None, scored: Tensor, every: bool) -> Sequence[Tensor]:
    """The last hidden state where a scored token is predicted, [tokens, width], or `every` one there is."""
    found = hidden_states(model, ids, mask) if every else [last_hidden(model, ids, mask)]
    return [state[:, :-1][scored] for state in found]
