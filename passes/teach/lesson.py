"""The YAML options of passes that learn from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.files.source import resolve
from compress.formats.files.storage import sha256_file
from compress.passes.forward.texts.blend import beside
from compress.passes.loss.losses import Divergence, LogitLoss

SOURCE = "source"


class TopK(BaseModel):
    """Keep the teacher's likeliest tokens, and how likely it is that another one follows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    top_k: int = Field(512, ge=1, le=1 << 16, description="tokens that are kept at every position")


Cache = Literal["hidden"] | TopK
"""How a teacher's answers are kept on disk: exactly, as `hidden` states, or as its likeliest tokens."""


class LessonOptions(BaseModel):
    """Who teaches, and what of its answers is learned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str = Field(SOURCE, description="`source`, the untouched model, or another model of the same vocabulary")
    loss: Literal["ce", "logit", "feature", "mixed"] = Field(
        "logit", description="learn the teacher's logits, its hidden states, or both; `ce`: the text itself, no teacher"
    )
    divergence: Divergence = Field("forward_kl", description="between the teacher's and the student's distribution")
    tau: float = Field(1.0, gt=0, le=100, description="temperature of both; the divergence counts τ² times")
    alpha: float = Field(0.0, ge=0, description="weight of the cross entropy of the text itself, beside the divergence")
    beta: float = Field(0.5, gt=0, lt=1, description="of `jsd`: the teacher's part of the mean")
    feature_weight: float = Field(1.0, gt=0, description="of `mixed`: weight of the hidden states' relative error")
    layers: Mapping[int, int] = Field({}, description="student layer: teacher layer, from 1; by default evenly spread")
    cache: Cache | Literal["off"] | None = Field(
        None,
        description="ask the teacher once and keep on disk its last hidden states (`hidden`: exact) or {top_k: 512} "
        "tokens; off: run it beside the student. By default hidden, and off where hidden states are learned",
    )

    @model_validator(mode="after")
    def _hidden_states_want_a_teacher_at_hand(self) -> Self:
        if self.loss != "logit" and self.cache not in (None, "off"):
            why = "learns of no teacher" if self.loss == "ce" else "compares hidden states of every layer"
            raise ValueError(f"loss: {self.loss} {why}, and a cache keeps a teacher's answers: say cache: off")
        return self

    @property
    def follows_source(self) -> bool:
        """Whether the untouched model teaches."""
        return self.teacher == SOURCE

    @property
    def wants_change(self) -> bool:
        """A model has nothing to learn from itself, but by what it learns of the text."""
        return self.follows_source and (self.alpha == 0 or self.loss == "feature")

    @property
    def kept(self) -> Cache | None:
        """How answers are kept; None: the teacher runs beside the student."""
        if self.cache is None:
            return "hidden" if self.loss == "logit" else None
        return None if self.cache == "off" else self.cache

    def located(self, folder: Path) -> Self:
        """With the teacher's path as it is from where the shell stands, if it begins at `folder`."""
        return self if self.follows_source else self.model_copy(update={"teacher": str(beside(folder, self.teacher))})

    def logit_loss(self, vocabulary: int | None) -> LogitLoss | None:
        """What is learned of logits; `vocabulary` as LogitLoss has it."""
        if self.loss == "feature":
            return None
        return LogitLoss(self.divergence, self.tau, self.alpha, self.beta, vocabulary)

    def check_teacher(self, source: Checkpoint) -> None:
        """Raises RefusedError for a teacher that reads text as other tokens than `source` does."""
        if not self.follows_source:
            from compress.passes.teach.teacher import open_teacher

            open_teacher(self.teacher, source, Path(), torch.device("cpu"))

    def teacher_width(self) -> int | None:
        """How wide the hidden states of another teacher are; None for the untouched model."""
        if self.follows_source:
            return None
        from compress.passes.model.config import load_config

        return int(load_config(open_checkpoint(resolve(self.teacher))).get_text_config().hidden_size)

    def teacher_files(self) -> Mapping[str, str]:
        """The digests of the teacher's files, as what is learned depends on them."""
        if self.follows_source:
            return {}
        path = resolve(self.teacher)
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
        return {f"teacher {file.name}": sha256_file(file) for file in files}
