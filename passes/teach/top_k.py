"""A teacher's likeliest tokens at every scored position, in files of blocks of sequences.

Of a sequence `i` there lie `i.ids` [positions, k] int32 and `i.log_p` [positions, k + 1] float16, the log-probability
of each and, last, that it is none of them; at the temperature of the loss. What a student learns of it is a
distribution over k + 1 outcomes, whose divergence is never above that over the vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from compress.formats.files.native import NativeFile, save_tensors
from compress.formats.files.storage import sha256_file
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.walk import Walk
from compress.passes.loss.chunked import CHUNK
from compress.passes.loss.losses import LogitLoss, Target, merged
from compress.passes.teach.cached import Answers, Asked, HiddenAnswers, ask, hidden_of, projection
from compress.passes.teach.lesson import Cache
from compress.passes.teach.teacher import Teacher

_BLOCK = 16
"""Sequences in one file: what a kill costs of the head's work."""


class Answered(Committed):
    """Sequences `start` to `stop` are in `file`; `left_out`: the probability of all other tokens, summed."""

    start: int
    stop: int
    file: str
    sha256: str
    left_out: float


class TopKAnswers:
    """The k likeliest tokens of what a teacher is `asked`; neither the teacher nor its head is needed again."""

    def __init__(self, run: Run, stage: Stage, teacher: Teacher, asked: Asked, loss: LogitLoss, k: int) -> None:
        """Asks the teacher, or takes up where the stage left that."""
        self._run, self._stage, self._asked, self._loss = run, stage, asked, loss
        self._k = min(k, loss.vocabulary or teacher.skeleton.vocabulary)
        blocks = run.journal.of(Answered, stage.key)
        done = max((block.stop for block in blocks), default=0)
        if done < asked.sequences.count:
            with torch.no_grad():
                blocks += self._write(ask(run, stage, teacher, asked), done)
        opened = [(NativeFile(stage.file(block.file)), block.stop - block.start) for block in blocks]
        self._files = [file for file, sequences in opened for _ in range(sequences)]
        self.left_out = sum(block.left_out for block in blocks) / max(1, asked.positions)
        """The probability of all other tokens, in the mean over positions."""
        run.reporter.note(f"the teacher's {self._k:,} likeliest tokens hold {1 - self.left_out:.2%} of its probability")

    def targets(self, scored: Tensor, rows: Tensor) -> Callable[[slice], Target]:
        """See `Answers`. Raises KeyError for a row that was not asked about."""
        read = [self._read(index) for index in self._asked.indices(rows)]
        ids, log_p = (torch.cat(parts).to(self._run.device) for parts in zip(*read))
        assert len(ids) == int(scored.sum())  # the loss scores what the teacher was asked
        # A distribution again: float16 has rounded it.
        log_p, ids = log_p.log_softmax(-1), ids.long()
        return lambda part: Target(log_p[part], ids[part])

    def _write(self, walk: Walk, done: int) -> list[Answered]:
        """Commit all but the first `done` sequences; what they were made of is dropped then."""
        project, count = projection(walk), self._asked.sequences.count
        self._run.reporter.start("keep the teacher's likeliest tokens", count, "sequence", done=done)
        starts = range(done, count, _BLOCK)
        blocks = [self._commit(walk, project, start, min(start + _BLOCK, count)) for start in starts]
        self._run.reporter.finish()
        shutil.rmtree(walk.streams[0].hidden.directory)
        return blocks

    def _commit(self, walk: Walk, project: Callable[[Tensor], Tensor], start: int, stop: int) -> Answered:
        tensors, left_out = dict[str, Tensor](), 0.0
        for index in range(start, stop):
            ids, log_p = self._top(project, hidden_of(walk, index)[self._asked.scored[index]])
            tensors |= {f"{index}.ids": ids.int(), f"{index}.log_p": log_p.half()}
            left_out += float(log_p[:, self._k :].exp().sum(dtype=torch.float64))
            self._run.reporter.advance()
        path = self._stage.file(f"top-k-{start:06d}.safetensors")
        save_tensors(path, tensors)
        block = Answered(
            stage=self._stage.key,
            start=start,
            stop=stop,
            file=path.name,
            sha256=sha256_file(path),
            left_out=left_out,
        )
        self._run.journal.append(block)
        return block

    def _top(self, project: Callable[[Tensor], Tensor], hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest tokens [positions, k] and their log-probabilities [positions, outcomes]."""
        found = [self._likeliest(self._loss.log_softmax(project(part))) for part in hidden.split(CHUNK)]
        ids, log_p = (torch.cat(parts).cpu() for parts in zip(*found))
        return ids, log_p

    def _likeliest(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        top, ids = log_p.topk(self._k)
        return ids, top if self._k == log_p.shape[1] else merged(log_p, ids)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        ids, log_p = (self._files[index].read(f"{index}.{part}") for part in ("ids", "log_p"))
        assert isinstance(ids, Tensor) and isinstance(log_p, Tensor)  # there are no codes among them
        return ids, log_p.float()  # autocast to bf16 does not join float16


def answers(kept: Cache, run: Run, stage: Stage, teacher: Teacher, asked: Asked, loss: LogitLoss) -> Answers:
    """What `teacher` answers to `asked`, `kept` on disk; it is asked for what the stage does not have yet."""
    if kept == "hidden":
        return HiddenAnswers(run, stage, teacher, asked, loss)
    return TopKAnswers(run, stage, teacher, asked, loss, kept.top_k)
