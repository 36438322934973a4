"""Learn from a teacher: the model as it stands comes nearer to the untouched one, or to another of its vocabulary.

Knowledge distillation (arXiv 1503.02531), of a quantized student as in QAD (arXiv 2601.20088): with codes that stay
and scales that learn, or with both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from compress.formats.base import Checkpoint, ModelSpec
from compress.passes.core.base import ModelPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.text import TextOptions, sequences_of
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.teach.lesson import LessonOptions
from compress.passes.train.options import TrainOptions
from compress.passes.train.trainable import learning


class Distill(LessonOptions, TrainOptions, TextOptions, ModelPass):
    """Train the model toward a teacher: its logits, its hidden states, or both."""

    reshapes: ClassVar[bool] = False

    loss: Literal["logit", "feature", "mixed"] = Field("logit", description="learn logits, hidden states, or both")

    def read(self, source: Checkpoint, folder: Path) -> Sequences | None:
        self.check_teacher(source)
        return sequences_of(self, load_tokenizer(source), False, folder)

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        assert sequences is not None  # `read` gave them
        options = self.model_dump(mode="json", exclude={*TextOptions.model_fields, "micro_batch", "checkpointing"})
        return {**options, **self.teacher_files(), "tokens": sequences.sha256()}

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        learning(model, sorted(model.tensors), self.train)
        return model

    def model(self, run: Run, stage: Stage) -> Outcome:
        from compress.passes.teach.teaching import lesson
        from compress.passes.train.course import train

        return train(run, stage, self, lambda student, *examples: lesson(run, stage, self, self, student, *examples))
