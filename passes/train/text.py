"""What every pass that trains reads: texts, of whose chats the answers alone may be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from compress.formats.base import Checkpoint
from compress.formats.errors import UsageError, within
from compress.passes.forward.texts.cut import joined
from compress.passes.forward.texts.text import Place, Source, TextOptions, cut_of
from compress.passes.model.tokenizer import load_tokenizer
from compress.passes.train.examples import Marked
from compress.passes.train.options import HeldOut, TrainOptions

_HOW = {"micro_batch", "checkpointing", "shard"}
"""Options of how it is computed, which change nothing of what comes out but how sums are rounded."""


class TrainText(TrainOptions, TextOptions):
    """How a model learns, and what from."""

    answers_only: bool = Field(False, description="of chats, learn only what the assistant says; of other text, all")

    def read_text(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Marked:
        """What is learned from, and held out. Raises InputError for a chat without an answer, with its row."""
        tokenizer = load_tokenizer(source)
        cut = cut_of(Source(tokenizer, False, folder, note, self.answers_only), self)
        apart = 0
        with within("held_out"):
            if other := self._other_text():
                self._refuse_what_is_learned(folder)
                more = cut_of(Source(tokenizer, True, folder, note, self.answers_only), other)
                cut, apart = joined([cut, more]), len(more.ids)
            elif len(cut.ids) <= self.looked_at:
                raise UsageError(
                    f"{self.held_out} sequences are to be held out, and there are {len(cut.ids)}",
                    "hold out fewer, or give more text, more samples or a shorter seq_len",
                )
        return Marked(cut.ids, cut.mask, cut.begun, cut.answers, apart)

    def extent(self) -> tuple[int, int] | None:
        return self.samples + (self.looked_at if self._other_text() else 0), self.seq_len

    def texts(self, folder: Path) -> Mapping[Place, str]:
        other = self._other_text()
        more = {("held_out", *place): name for place, name in other.texts(folder).items()} if other else {}
        return {**super().texts(folder), **more}

    def basis(self, source: Checkpoint, folder: Path) -> Mapping[str, Any] | None:
        other, found = self._other_text(), super().basis(source, folder)
        held_out = other.basis(source, folder) if other else self.held_out
        return None if None in (found, held_out) else {**(found or {}), "train": [self.answers_only, held_out]}

    def learns_by(self) -> dict[str, Any]:
        """The options that what comes out depends on, beside the texts."""
        texts = {"held_out"} if self._other_text() else set[str]()
        return self.model_dump(mode="json", exclude={*TextOptions.model_fields, *texts, *_HOW})

    def _other_text(self) -> TextOptions | None:
        """The text that is held out, where it is another: cut as the one that is learned."""
        if not isinstance(self.held_out, HeldOut):
            return None
        return TextOptions(**self.held_out.model_dump(), seq_len=self.seq_len, pack=self.pack)

    def _refuse_what_is_learned(self, folder: Path) -> None:
        learned = {*super().texts(folder).values()}
        for place, name in self.texts(folder).items():
            if place[0] == "held_out" and name in learned:
                with within(*place[1:]):
                    raise UsageError(
                        f"{name} is what is learned, and tells nothing of other text",
                        "name another text or split, or how many sequences to keep out: held_out: 16",
                    )
