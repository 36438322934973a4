"""What every pass that trains reads: texts, of whose chats the answers alone may be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from compress.formats.base import Checkpoint
from compress.formats.errors import UsageError, within
from compress.passes.forward.text import Source, TextOptions, cut_of
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.train.examples import Marked
from compress.passes.train.options import TrainOptions

_HOW = {"micro_batch", "checkpointing"}
"""Options of how it is computed, which change nothing of what comes out."""


class TrainText(TrainOptions, TextOptions):
    """How a model learns, and what from."""

    answers_only: bool = Field(False, description="of chats, learn only what the assistant says; of other text, all")

    def read_text(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Marked:
        """What is learned from, and held out. Raises InputError for a chat without an answer, with its row."""
        cut = cut_of(Source(load_tokenizer(source), False, folder, note, self.answers_only), self)
        if len(cut.ids) <= self.held_out:
            with within("held_out"):
                raise UsageError(
                    f"{self.held_out} sequences are to be held out, and there are {len(cut.ids)}",
                    "hold out fewer, or give more text, more samples or a shorter seq_len",
                )
        return Marked(cut.ids, cut.mask, cut.begun, cut.answers)

    def basis(self, source: Checkpoint, folder: Path) -> Mapping[str, Any] | None:
        found = super().basis(source, folder)
        return None if found is None else {**found, "train": [self.answers_only, self.held_out]}

    def learns_by(self) -> dict[str, Any]:
        """The options that what comes out depends on, beside the text."""
        return self.model_dump(mode="json", exclude={*TextOptions.model_fields, *_HOW})
