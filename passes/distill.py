"""Learn from a teacher: the model as it stands comes nearer to the untouched one, or to another of its vocabulary.

Knowledge distillation (arXiv 1503.02531), of a quantized student as in QAD (arXiv 2601.20088): with codes that stay
and scales that learn, or with both.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compress.formats.base import ModelSpec
from compress.passes.core.base import Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.sample import sample_cost
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import Cost
from compress.passes.model.anatomy import Anatomy
from compress.passes.teach.layer_cost import layerwise_cost
from compress.passes.teach.lesson import LessonOptions
from compress.passes.teach.taught import Taught
from compress.passes.train.trainable import learning


class Distill(Taught):
    """Train the model toward a teacher: its logits, its hidden states, or both."""

    loss: Literal["logit", "feature", "mixed"] = Field("logit", description="learn logits, hidden states, or both")
    scope: Literal["model", "layer"] = Field(
        "model",
        description="learn as a whole, or one decoder layer at a time toward the untouched layer's outputs: `steps` "
        "are those of each then, and memory does not grow with depth",
    )

    @model_validator(mode="after")
    def _layers_learn_of_their_own(self) -> Self:
        defaults = {name: type(self).model_fields[name].default for name in LessonOptions.model_fields}
        said = [name for name, default in defaults.items() if getattr(self, name) != default]
        if self.scope == "layer" and said:
            raise ValueError(f"scope: layer: an untouched layer's outputs are what is learned: leave out {said[0]}")
        if self.scope == "layer" and self.shard is True:
            raise ValueError("scope: layer: one layer at a time is trained, by one process: leave out shard")
        return self

    @property
    def together(self) -> bool:
        return self.scope == "model"  # one layer is soon read and written: the main process trains it

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        learning(model, sorted(model.tensors), self, anatomy)
        return model

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences, budget = setting.model, setting.anatomy, setting.sequences, setting.budget
        if self.scope == "layer":
            cost = layerwise_cost(self, model, anatomy, sequences, budget)
            return cost.after(sample_cost(model, anatomy, self.own, self.seq_len))
        return super().cost(setting)

    def model(self, run: Run, stage: Stage) -> Outcome:
        if self.scope == "layer":
            from compress.passes.teach.layerwise import train_layers

            return train_layers(run, stage, self)
        from compress.passes.teach.teaching import lesson
        from compress.passes.train.course import train

        return train(run, stage, self, lambda student, *examples: lesson(run, stage, self, self, student, *examples))
