"""A teacher that is asked once, before its student learns, layer by layer: memory independent of its depth.

What it answered lies on disk: here its last hidden states, from which its logits are one product away, exactly; in
`top_k` its likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from compress.passes.core.carry import carry
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import boundary_bytes
from compress.passes.forward.cost.shapes import Extent
from compress.passes.forward.walk import Walk
from compress.passes.loss.losses import LogitLoss, Target
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import dense
from compress.passes.teach.lesson import Cache
from compress.passes.teach.teacher import Teacher
from compress.passes.train.options import Precision


@dataclass(frozen=True)
class Asked:
    """What a teacher is asked: the next token of every `scored` [sequences, length − 1] position of `sequences`.

    `rows` [sequences] int64 are the numbers by which a loss will ask for them again. `precision` is that of its
    forward: the student's, so that two equal models agree.
    """

    sequences: Sequences
    scored: Tensor
    rows: Tensor
    precision: Precision = "fp32"

    @property
    def positions(self) -> int:
        """How many next tokens it is asked for."""
        return int(self.scored.sum())

    def indices(self, rows: Tensor) -> list[int]:
        """Which of the sequences have these numbers. Raises KeyError for one that was not asked."""
        return [self._places[row] for row in rows.tolist()]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {row: index for index, row in enumerate(self.rows.tolist())}


class Answers(Protocol):
    """What a teacher answered."""

    def targets(self, scored: Tensor, rows: Tensor) -> Callable[[slice], Target]:
        """The targets of the `scored` [n, length − 1] positions of the sequences `rows` [n], any part of them."""
        ...


class HiddenAnswers:
    """The teacher's last hidden states of what it is `asked`, and its head in memory."""

    def __init__(self, run: Run, stage: Stage, teacher: Teacher, asked: Asked, loss: LogitLoss) -> None:
        """Asks the teacher, or takes up where the stage left that."""
        self._asked, self._loss = asked, loss
        self._walk = ask(run, stage, teacher, asked)
        self._project = projection(self._walk)

    def targets(self, scored: Tensor, rows: Tensor) -> Callable[[slice], Target]:
        """See `Answers`. Raises KeyError for a row that was not asked about."""
        indices = self._asked.indices(rows)
        hidden = torch.cat([hidden_of(self._walk, index)[which] for index, which in zip(indices, scored.cpu())])

        def targets(part: slice) -> Target:
            with torch.no_grad():
                return self._loss.target(self._project(hidden[part]))

        return targets


def ask(run: Run, stage: Stage, teacher: Teacher, asked: Asked) -> Walk:
    """The teacher with the sequences at its last boundary."""
    weights = dense(teacher.checkpoint)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=asked.precision == "bf16"):
        return carry(run, stage, "teacher", "ask the teacher", asked.sequences, teacher.skeleton, weights)


def hidden_of(walk: Walk, index: int) -> Tensor:
    """The last hidden states [length − 1, width] fp32 of one sequence, without that of its last token."""
    (stream,) = walk.streams
    return stream.hidden.read(len(walk.skeleton.anatomy.layers), index, index + 1)[0, :-1]


def projection(walk: Walk) -> Callable[[Tensor], Tensor]:
    """hidden [tokens, width], wherever it lies → logits [tokens, vocabulary]."""
    (stream,) = walk.streams
    skeleton = walk.skeleton
    project, _ = skeleton.back(stream.weights)

    def logits(hidden: Tensor) -> Tensor:
        if not len(hidden):  # transformers' masks want a token
            return torch.zeros(0, skeleton.vocabulary, device=skeleton.device)
        return project(hidden[None].to(skeleton.device))[0]

    return logits


def disk_bytes(cache: Cache, width: int, sequences: Extent, positions: int) -> int:
    """What the answers of a teacher of that width take on disk while they are made.

    These are two boundaries, and the tokens that are kept.
    """
    boundary = boundary_bytes(sequences, width)
    if cache == "hidden":
        return 2 * boundary
    return max(2 * boundary, boundary + positions * top_k_bytes(cache.top_k))


def top_k_bytes(k: int) -> int:
    """What one position takes: k tokens int32, k + 1 log-probabilities float16."""
    return 4 * k + 2 * (k + 1)
