"""A smaller model, for whatever loads it: tensors come out smaller, or are gone, and `config.json` says so.

Channels of feed-forward layers and groups of attention heads go layer by layer, on what the layers before it give by
then, and what reads them makes up for it. Every layer keeps as many, for engines know one number. Or whole layers go:
those that change least. Or channels of the residual stream, the same in all layers and at both ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.passes.core.base import ModelPass, Setting
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost import HEAP, Cost, walk_cost
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.narrow.choice import Choice, Score
from compress.passes.narrow.ffn import find_ffns, layers_size, narrowed, width_for
from compress.passes.narrow.heads import find_groups, with_groups
from compress.passes.narrow.inner import Inner
from compress.passes.narrow.layers import fewer, influences, renumbered, strongest
from compress.passes.narrow.stream import ResidualStream, find_stream, stream_width_for, thinner
from compress.passes.narrow.thin import Thinning, thin_disk, thin_effort
from compress.passes.narrow.walk import narrow

Axis = Literal["ffn", "kv_heads", "layers", "hidden"]
Sizes = Mapping[Axis, tuple[Sequence[Inner], int]]
"""What is narrowed within layers, by axis: the units that there are, and how many are to be left."""


class Shrink(ModelPass):
    """Make the model smaller for every engine: drop channels, groups of heads or layers, repair what is left."""

    calibrated: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    to: float | None = Field(None, gt=0, lt=1, description="which part of the decoder layers' parameters to keep")
    axes: tuple[Axis, ...] = Field(
        ("ffn",),
        min_length=1,
        description="what `to` is reached by: [ffn], [ffn, kv_heads] (as large a part of heads, rounded up), [layers] "
        "or [hidden]",
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
    correct: bool = Field(False, description="repair aims at the untouched model's outputs; runs it beside")

    @model_validator(mode="after")
    def _has_an_aim(self) -> Self:
        within = self.ffn is not None or self.kv_heads is not None
        if [self.to is not None, within, self.layers is not None, self.hidden is not None].count(True) != 1:
            raise ValueError(
                "say `to` (as 0.8), or `ffn` (as 1280) and `kv_heads` (as 2), or `layers` (as 24), or `hidden` (as "
                "512); each in its own step"
            )
        if "axes" in self.model_fields_set and self.to is None:
            raise ValueError("`axes` is of `to`: say that, or leave it out")
        if {"layers", "hidden"}.intersection(self.axes) and len(self.axes) > 1:
            raise ValueError("layers and hidden go in steps of their own: say axes: [layers], or [hidden], there")
        if self.correct and (self._by_layers or self._by_stream):
            raise ValueError("correct is of ffn and kv_heads: say them, or leave it out")
        if self.correct and not self.repair:
            raise ValueError("correct is of the repair: say repair: true")
        return self

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
        if self._by_layers:
            return fewer(model, anatomy, self._count(anatomy))
        if self._by_stream:
            stream = find_stream(model, anatomy)
            return thinner(model, anatomy, stream, self._stream_width(model, anatomy, stream))
        return self._resized(model, anatomy, self._sizes(model, anatomy))

    @property
    def _by_layers(self) -> bool:
        return self.layers is not None or "layers" in self.axes

    @property
    def _by_stream(self) -> bool:
        return self.hidden is not None or "hidden" in self.axes

    def _stream_width(self, model: ModelSpec, anatomy: Anatomy, stream: ResidualStream) -> int:
        width = self.hidden or stream_width_for(model, anatomy, stream, self.to or 1.0, self.multiple)
        return self._width("hidden", width, stream.width)

    def _count(self, anatomy: Anatomy) -> int:
        """How many layers are to be left. Raises RefusedError for what cannot be."""
        there = len(anatomy.layers)
        count = self.layers or int((self.to or 1.0) * there)
        if not 1 <= count < there:
            raise RefusedError(
                f"shrink: there are {there} layers, and {count} are to be left", f"say layers: 1 to {there - 1}"
            )
        return count

    def _resized(self, model: ModelSpec, anatomy: Anatomy, sizes: Sizes) -> ModelSpec:
        if "kv_heads" in sizes:
            model = with_groups(model, anatomy, *sizes["kv_heads"])
        return narrowed(model, *sizes["ffn"]) if "ffn" in sizes else model

    def _sizes(self, model: ModelSpec, anatomy: Anatomy) -> Sizes:
        """What is to be left of what. Raises RefusedError for what cannot be."""
        sizes: dict[Axis, tuple[Sequence[Inner], int]] = {}
        if self.kv_heads or (self.to and "kv_heads" in self.axes):
            groups = find_groups(model, anatomy)
            if (kept := self._groups(groups)) < groups[0].units:
                sizes["kv_heads"] = groups, kept
        if self.ffn or (self.to and "ffn" in self.axes):
            ffns, smaller = find_ffns(model, anatomy), self._resized(model, anatomy, sizes)
            most = int((self.to or 1.0) * layers_size(model, anatomy))
            width = self.ffn or width_for(smaller, anatomy, ffns, most, self.multiple)
            sizes["ffn"] = ffns, self._width("ffn", width, ffns[0].units)
        return sizes

    def _groups(self, groups: Sequence[Inner]) -> int:
        there = groups[0].units
        if self.to:
            return -int(-self.to * there // 1)
        if self.kv_heads is None or self.kv_heads >= there:
            raise RefusedError(
                f"shrink: attention has {there} heads of keys and values, and is to have {self.kv_heads}",
                "say a smaller number" if there > 1 else "leave kv_heads out",
            )
        return self.kv_heads

    def _width(self, axis: Axis, width: int, there: int) -> int:
        what = "feed-forward layers" if axis == "ffn" else "the residual stream"
        if width % self.multiple:
            nearest = max(1, round(width / self.multiple)) * self.multiple
            raise RefusedError(
                f"shrink: {axis}: {width} is no multiple of {self.multiple}",
                f"say {axis}: {nearest}, or another `multiple`",
            )
        if width <= 0:
            raise RefusedError(
                f"shrink: to: {self.to} leaves {what} no {self.multiple} channels",
                "say a larger part, more `axes`, or a smaller `multiple`",
            )
        if width >= there:
            raise RefusedError(
                f"shrink: {what}: there are {there} channels, and {width} are to be left", "say a smaller number"
            )
        return width

    def _choice(self) -> Choice:
        return Choice(self.score, self.repair, self.shrinkage, self.correct)

    def cost(self, setting: Setting) -> Cost:
        model, anatomy, sequences, budget = setting.model, setting.anatomy, setting.sequences, setting.budget
        if self._by_layers:
            return walk_cost(model, anatomy, sequences, budget)
        walk = walk_cost(model, anatomy, sequences, budget, streams=2 if self.correct else 1, statistics=True)
        if self._by_stream:
            stream = find_stream(model, anatomy)
            width, tokens = self._stream_width(model, anatomy, stream), sequences[0] * sequences[1]
            effort = walk.effort + thin_effort(model, stream, self._choice(), width, tokens)
            return replace(walk, effort=effort, disk=walk.disk + thin_disk(stream))
        choice, effort, solving = self._choice(), walk.effort, 0
        for inners, units in self._sizes(model, anatomy).values():
            shape = model.tensors[f"{inners[0].reader}.weight"].shape
            for kind in choice.kinds():
                effort += kind.effort(sequences[0] * sequences[1], shape[1], shape[0]) * len(inners)
            effort += choice.effort(shape, inners[0], units) * len(inners)
            solving = max(solving, choice.memory(shape, inners[0], units))
        return replace(walk, effort=effort, memory=walk.memory + int(HEAP * solving))

    def model(self, run: Run, stage: Stage) -> Outcome:
        if self._by_stream:
            return self._narrower_stream(run, stage)
        return self._with_fewer_layers(run, stage) if self._by_layers else self._narrower_layers(run, stage)

    def _narrower_stream(self, run: Run, stage: Stage) -> Outcome:
        before, anatomy = run.model.spec, run.skeleton.anatomy
        planned, stream = self.plan(before, anatomy), find_stream(before, anatomy)
        width = self._stream_width(before, anatomy, stream)
        thinning = Thinning(run, stage, stream, self._choice())
        thinning.gather()
        errors = {module: error for record in thinning.thin(width) for module, error in record.errors.items()}
        run.model.become(planned)
        return Outcome(
            authors=self._authors(run, {name: name for name in stream.axes(before, anatomy)}),
            reports={module: {"relative_error": error} for module, error in errors.items()},
            manifest=self._told(run, hidden=width, hidden_before=self._first(run, "hidden_before", stream.width)),
        )

    def _with_fewer_layers(self, run: Run, stage: Stage) -> Outcome:
        anatomy, before = run.skeleton.anatomy, run.model.spec
        planned, there = self.plan(before, anatomy), len(anatomy.layers)
        kept = strongest(influences(run, stage), self._count(anatomy))
        called = renumbered(before, anatomy, kept)
        run.model.rename(called)
        run.model.become(planned)
        moved = {new: old for new, old in called.items() if new != old}
        gone = before.tensors.keys() - planned.tensors.keys()
        return Outcome(
            called=called,
            authors=self._authors(run, {**dict.fromkeys(gone, ""), **moved}),
            manifest=self._told(run, layers=len(kept), layers_gone=[at for at in range(there) if at not in kept]),
        )

    def _narrower_layers(self, run: Run, stage: Stage) -> Outcome:
        before, anatomy, choice = run.model.spec, run.skeleton.anatomy, self._choice()
        planned, sizes = self.plan(before, anatomy), self._sizes(before, anatomy)
        parts = []
        for index, layer in enumerate(anatomy.layers):
            own = [choice.part(before, inners[index], units) for inners, units in sizes.values()]
            order = [names[0] for names in layer.siblings]  # that of the forward
            parts.append(sorted(own, key=lambda part: order.index(part.at)))
        records = narrow(run, stage, parts)
        run.model.become(planned)
        changed = {name for inners, _ in sizes.values() for inner in inners for name in inner.axes(before)}
        errors = {module: error for record in records for module, error in record.errors.items()}
        left = {inner.reader: units for inners, units in sizes.values() for inner in inners}
        figures = {axis: units for axis, (_, units) in sizes.items()}
        were = {f"{axis}_before": inners[0].units for axis, (inners, _) in sizes.items()}
        return Outcome(
            authors=self._authors(run, {name: name for name in changed}),
            reports={module: {"relative_error": error, "units": left[module]} for module, error in errors.items()},
            manifest=self._told(run, **figures, **{key: self._first(run, key, was) for key, was in were.items()}),
        )

    def _authors(self, run: Run, called: Mapping[str, str]) -> dict[str, str]:
        """Who made the tensors that are `called` so now, and were called otherwise: this step in the end."""
        before = run.left.authors
        return {name: " + ".join(filter(None, (before.get(was), self.name))) for name, was in called.items()}

    def _told(self, run: Run, **figures: Any) -> dict[str, Any]:
        """For the manifest: beside what earlier steps of this kind have said."""
        return {self.name: {**run.left.manifest.get(self.name, {}), **figures}}

    def _first(self, run: Run, key: str, value: int) -> Any:
        """What an earlier step said it was before, or `value`."""
        return run.left.manifest.get(self.name, {}).get(key, value)
