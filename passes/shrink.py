"""A smaller model, for whatever loads it: tensors come out smaller, or are gone, and `config.json` says so.

Channels of feed-forward layers and groups of attention heads go layer by layer, on what the layers before it give by
then, and what reads them makes up for it. Every layer keeps as many, for engines know one number. Or whole layers go:
those that change least. Or channels of the residual stream, the same in all layers and at both ends. Several of these
are several stages: layers first, then the stream, then what lies within layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.passes.core.base import ModelPass, Pass, Place, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import HEAP, Cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.narrow.choice import Choice, Score
from compress.passes.narrow.corrections import corrections_effort
from compress.passes.narrow.sizes import Aim, Axis
from compress.passes.narrow.stream import find_stream
from compress.passes.narrow.thin import thin_disk, thin_effort
from compress.passes.narrow.ways import Way

_STEPS: tuple[tuple[Axis, ...], ...] = (("layers",), ("hidden",), ("kv_heads", "ffn"))
"""What is done in a stage of its own, one after the other."""
_WITHIN = frozenset(_STEPS[-1])


class Shrink(ModelPass):
    """Make the model smaller for every engine: drop channels, groups of heads or layers, repair what is left."""

    calibrated: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    to: float | None = Field(None, gt=0, lt=1, description="which part of the decoder layers' parameters to keep")
    axes: tuple[Axis, ...] = Field(
        ("ffn",),
        min_length=1,
        description="what `to` is reached by: [ffn], [ffn, kv_heads] (as large a part of heads, rounded up), [layers], "
        "[hidden]; of layers, hidden and what lies within layers together each keeps as large a part",
    )
    ffn: int | None = Field(None, ge=1, description="how many channels feed-forward layers are to have")
    kv_heads: int | None = Field(
        None,
        ge=1,
        description="how many heads of keys and values attention is to have: heads that share one go with it",
    )
    layers: int | None = Field(
        None, ge=1, description="how many layers to keep: those that turn the hidden states most (ShortGPT)"
    )
    hidden: int | None = Field(
        None,
        ge=1,
        description="how many channels the residual stream is to have: those go that add least to what is read",
    )
    multiple: int = Field(
        64,
        ge=1,
        description="`ffn` and `hidden` are multiples of it: 64 is what kernels like, 256 what K-quants of GGUF need",
    )
    score: Score = Field(
        "hessian",
        description="which channels and heads go: those of the least weights (`l1`); of the least outputs "
        "(`activation`); or, one after the other, those that the others make up for best",
    )
    repair: bool = Field(True, description="fit what reads the channels to those kept, by least squares of its outputs")
    shrinkage: float = Field(
        0.5,
        ge=0,
        le=1,
        description="by which part `hessian` and `repair` make smaller what channels share: that is chance in part, "
        "and of this text alone",
    )
    correct: bool = Field(
        False,
        description="repair aims at the untouched model's outputs, and so do the layers' other linears; runs it beside",
    )

    @model_validator(mode="after")
    def _has_an_aim(self) -> Self:
        if (self.to is None) == (not self._counts):
            raise ValueError(
                "say `to` (as 0.8), or how many there are to be: `ffn` (as 1280), `kv_heads` (as 2), `layers` (as 24), "
                "`hidden` (as 512)"
            )
        if "axes" in self.model_fields_set and self.to is None:
            raise ValueError("`axes` is of `to`: say that, or leave it out")
        if self.correct and _WITHIN.isdisjoint(self._axes):
            raise ValueError("correct is of ffn and kv_heads: say them, or leave it out")
        if self.correct and not self.repair:
            raise ValueError("correct is of the repair: say repair: true")
        return self

    @property
    def _counts(self) -> dict[Axis, int]:
        """What is said of an axis by itself."""
        said: dict[Axis, int | None] = {
            "ffn": self.ffn, "kv_heads": self.kv_heads, "layers": self.layers, "hidden": self.hidden
        }  # fmt: skip
        return {axis: count for axis, count in said.items() if count is not None}

    @property
    def _axes(self) -> tuple[Axis, ...]:
        """Along which it makes the model smaller."""
        return self.axes if self.to else tuple(self._counts)

    def unfolded(self) -> Sequence[tuple[Place, Pass]]:
        steps = [axes for step in _STEPS if (axes := tuple(axis for axis in step if axis in self._axes))]
        return super().unfolded() if len(steps) == 1 else [((), self._step(axes, len(steps))) for axes in steps]

    def _step(self, axes: tuple[Axis, ...], steps: int) -> Shrink:
        """One of so many `steps`, which is along `axes` alone."""
        said = self.model_dump(include=self.model_fields_set - {"to", "axes", *self._counts})
        if _WITHIN.isdisjoint(axes):
            said.pop("correct", None)
        aim = {"to": self.to ** (1 / steps), "axes": axes} if self.to else {axis: self._counts[axis] for axis in axes}
        return Shrink.model_validate({**said, **aim})

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        return self.model_dump(mode="json")

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        if quantized := min((name for name, spec in model.tensors.items() if spec.format is not None), default=""):
            raise RefusedError(
                f"shrink: {quantized} is quantized", "put shrink before what quantizes, and begin from a dense model"
            )
        if model.pruned:
            raise RefusedError(
                f"shrink: {min(model.pruned)} was pruned, and what shrink repairs has no zeros",
                "put shrink before prune",
            )
        return self._aim.planned(model, anatomy)

    @property
    def _aim(self) -> Aim:
        return Aim(self.to, self.axes, self.ffn, self.kv_heads, self.layers, self.hidden, self.multiple)

    @property
    def _choice(self) -> Choice:
        return Choice(self.score, self.repair, self.shrinkage, self.correct)

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences, budget = setting.model, setting.anatomy, setting.sequences, setting.budget
        if self._aim.by_layers:
            return Passage(model, anatomy, sequences).cost(budget)
        if self._aim.by_stream:
            return self._stream_cost(setting)
        sizes, tokens = self._aim.sizes(model, anatomy), sequences[0] * sequences[1]
        readers = {inner.reader for inners, _ in sizes.values() for inner in inners}
        rounds = max(len(layer.siblings) for layer in anatomy.layers) if self.correct else len(sizes)
        streams = 2 if self.correct else 1
        walk = Passage(model, anatomy, sequences, streams=streams, statistics=True).cost(budget, rounds=rounds)
        choice, effort, solving = self._choice, walk.effort, 0
        for inners, units in sizes.values():
            shape = model.tensors[f"{inners[0].reader}.weight"].shape
            for kind in choice.kinds():
                effort += kind.effort(tokens, shape[1], shape[0]) * len(inners)
            effort += choice.effort(shape, inners[0], units) * len(inners)
            solving = max(solving, choice.memory(shape, inners[0], units))
        for layer in anatomy.layers if self.correct else ():
            effort += corrections_effort(model, layer, readers, tokens)
        return replace(walk, effort=effort, memory=walk.memory + int(HEAP * solving))

    def _stream_cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences = setting.model, setting.anatomy, setting.sequences
        walk, stream = (
            Passage(model, anatomy, sequences, statistics=True).cost(setting.budget),
            find_stream(model, anatomy),
        )
        width = self._aim.stream_width(model, anatomy, stream)
        effort = walk.effort + thin_effort(model, stream, self._choice, width, sequences[0] * sequences[1])
        return replace(walk, effort=effort, disk=walk.disk + thin_disk(stream))

    def model(self, run: Run, stage: Stage) -> Outcome:
        return Way(run, stage, self._aim, self._choice, self.name).go()
