"""Learn from a teacher: the model as it stands comes nearer to the untouched one, or to another of its vocabulary.

Knowledge distillation (arXiv 1503.02531), of a quantized student as in QAD (arXiv 2601.20088): with codes that stay
and scales that learn, or with both.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.formats.base import ModelSpec
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.anatomy import Anatomy
from compress.passes.teach.taught import Taught
from compress.passes.train.trainable import learning


class Distill(Taught):
    """Train the model toward a teacher: its logits, its hidden states, or both."""

    loss: Literal["logit", "feature", "mixed"] = Field("logit", description="learn logits, hidden states, or both")

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        learning(model, sorted(model.tensors), self.train)
        return model

    def model(self, run: Run, stage: Stage) -> Outcome:
        from compress.passes.teach.teaching import lesson
        from compress.passes.train.course import train

        return train(run, stage, self, lambda student, *examples: lesson(run, stage, self, self, student, *examples))
