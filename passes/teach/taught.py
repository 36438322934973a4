"""What passes that learn from a teacher have in common: their options, the text that they read, what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from compress.formats.base import Checkpoint, ModelSpec
from compress.passes.core.base import LayerPass, ModelPass
from compress.passes.core.sample import sample_cost
from compress.passes.forward.cost import Cost, Extent
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.teach.lesson import LessonOptions
from compress.passes.train.cost import training_cost
from compress.passes.train.text import TrainText


class Taught(LessonOptions, TrainText, ModelPass):
    """A model learns from a teacher, on a text."""

    reshapes: ClassVar[bool] = False

    def read(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Sequences | None:
        self.check_teacher(source)
        return self.read_text(source, folder, note)

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        assert sequences is not None  # `read` gave them
        return {**self.learns_by(), **self.teacher_files(), "tokens": sequences.sha256()}

    def cost(
        self, model: ModelSpec, anatomy: Anatomy, sequences: Extent, budget: int, following: Sequence[LayerPass] = ()
    ) -> Cost:
        beside = self.loss != "ce" and self.kept is None
        cost = training_cost(model, anatomy, sequences, self, budget, beside, self.loss != "ce" and not beside)
        return cost.after(sample_cost(model, anatomy, self.own, self.seq_len))
