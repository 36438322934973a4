"""Fine-tuning on text or chats: the model as it stands learns what comes next, of chats what the assistant says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from compress.formats.base import Checkpoint, ModelSpec
from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.sample import sample_cost
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import Cost
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.train.cost import training_cost
from compress.passes.train.text import TrainText
from compress.passes.train.trainable import learning


class Finetune(TrainText, ModelPass):
    """Train the model on a text of yours, or on chats: of these it learns the assistant's answers."""

    reshapes: ClassVar[bool] = False

    answers_only: bool = Field(True, description="of chats, learn only what the assistant says; of other text, all")

    def read(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Sequences | None:
        return self.read_text(source, folder, note)

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        assert sequences is not None  # `read` gave them
        return {**self.learns_by(), "tokens": sequences.sha256()}

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        learning(model, sorted(model.tensors), self, anatomy)
        return model

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences, budget = setting.model, setting.anatomy, setting.sequences, setting.budget
        cost = training_cost(model, anatomy, sequences, self, budget, teacher=False, asked=False, crew=setting.crew)
        return cost.after(sample_cost(model, anatomy, self.own, self.seq_len))

    def model(self, run: Run, stage: Stage) -> Outcome:
        from compress.passes.train.course import train
        from compress.passes.train.likelihood import Likelihood

        return train(run, stage, self, lambda student, *_: (Likelihood(student.model, self.precision), []))
