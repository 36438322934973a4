"""Quantization-aware training: the model learns with the very values that are written in the end.

Codes are those nearest to latent weights, which learn straight through the rounding (arXiv 1308.3432); scales learn
with them (LSQ, arXiv 1902.08153). What a pass before it quantized goes on from those codes and scales; everything
else begins at the scales of least squared error. By default the model learns from the untouched one (LLM-QAT,
arXiv 2305.17888).
"""

from __future__ import annotations

from typing import ClassVar

from compress.formats.base import ModelSpec
from compress.formats.errors import UsageError
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.anatomy import Anatomy
from compress.passes.options.any_format import FormatOptions
from compress.passes.teach.taught import Taught
from compress.passes.train.trainable import learning

_OF_FORMATS = ("format", "bits", "symmetric", "zero", "block_size", "double_quant")


class QAT(FormatOptions, Taught):
    """Train the model as it will be quantized: codes and scales learn, for few bits and the price of training."""

    spans: ClassVar[bool] = True

    @property
    def wants_change(self) -> bool:
        return False

    def formatted(self, model: ModelSpec, anatomy: Anatomy) -> frozenset[str]:
        return frozenset(name for name in self.targets(anatomy) if model.tensors[f"{name}.weight"].format is None)

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        planned = super().plan(model, anatomy)
        if planned == model:
            self._refuse_idle_formats()
        learning(planned, sorted(planned.tensors), self, anatomy)
        return planned

    def _refuse_idle_formats(self) -> None:
        fields = type(self).model_fields
        if idle := [name for name in _OF_FORMATS if getattr(self, name) != fields[name].default]:
            raise UsageError(
                f"{self.name}: {idle[0]} decides nothing: every layer that it is for was quantized by a pass before it",
                f"take {idle[0]} out, or that pass",
            )

    def model(self, run: Run, stage: Stage) -> Outcome:
        from compress.passes.teach.teaching import lesson
        from compress.passes.train.course import train
        from compress.passes.train.examples import Examples
        from compress.passes.train.likelihood import Likelihood
        from compress.passes.train.loop import Group, Objective
        from compress.passes.train.nearest import round_to_nearest
        from compress.passes.train.student import Student

        def make(student: Student, *examples: Examples) -> tuple[Objective, list[Group]]:
            if self.loss == "ce":
                return Likelihood(student.model, self.precision), []
            objective, groups = lesson(run, stage, self, self, student, *examples)
            return objective, [*groups]

        dense = self.formatted(run.model.spec, run.skeleton.anatomy)
        if not (dense or run.model.rewritten or self.loss == "ce") and self.follows_source:
            raise UsageError(
                f"{self.name}: the model came quantized, and has nothing to learn from itself",
                "say loss: ce, to learn from the text, or name another model: `teacher: …`",
            )
        return train(run, stage, self, make, lambda: round_to_nearest(run, self, dense))
