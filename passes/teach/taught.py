"""What passes that learn from a teacher have in common: their options, the text that they read, what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from compress.formats.base import Checkpoint, ModelSpec
from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.sample import sample_cost
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.shapes import Extent
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

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences, budget = setting.model, setting.anatomy, setting.sequences, setting.budget
        beside = self.loss != "ce" and self.kept is None
        asked = self.loss != "ce" and not beside
        cost = training_cost(model, anatomy, sequences, self, budget, beside, asked, setting.crew)
        if asked:
            cost = replace(cost, disk=cost.disk + self._kept_bytes(model, anatomy, sequences))
        return cost.after(sample_cost(model, anatomy, self.own, self.seq_len))

    def _kept_bytes(self, model: ModelSpec, anatomy: Anatomy, sequences: Extent) -> int:
        """What the teacher's answers take on disk."""
        from compress.passes.teach.cached import disk_bytes

        assert self.kept is not None  # who is not asked before keeps nothing
        width = self.teacher_width() or model.tensors[anatomy.embedding].shape[1]
        return disk_bytes(self.kept, width, sequences, sequences[0] * (sequences[1] - 1))
