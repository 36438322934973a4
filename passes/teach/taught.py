"""What passes that learn from a teacher have in common: their options, the text that they read, what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from compress.formats.base import Checkpoint, ModelSpec
from compress.passes.core.base import LayerPass, ModelPass
from compress.passes.forward.cost import Cost, Extent
from compress.passes.forward.text import TextOptions, sequences_of
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.teach.lesson import LessonOptions
from compress.passes.train.cost import training_cost
from compress.passes.train.options import TrainOptions

_HOW = {"micro_batch", "checkpointing"}
"""Options of how it is computed, which change nothing of what comes out."""


class Taught(LessonOptions, TrainOptions, TextOptions, ModelPass):
    """A model learns from a teacher, on a text."""

    reshapes: ClassVar[bool] = False

    def read(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Sequences | None:
        self.check_teacher(source)
        return sequences_of(self, load_tokenizer(source), False, folder, note)

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        assert sequences is not None  # `read` gave them
        options = self.model_dump(mode="json", exclude={*TextOptions.model_fields, *_HOW})
        return {**options, **self.teacher_files(), "tokens": sequences.sha256()}

    def cost(
        self, model: ModelSpec, anatomy: Anatomy, sequences: Extent, budget: int, following: Sequence[LayerPass] = ()
    ) -> Cost:
        beside = self.loss != "ce" and self.kept is None
        return training_cost(model, anatomy, sequences, self, budget, beside, self.loss != "ce" and not beside)
