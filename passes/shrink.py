"""A smaller model, for whatever loads it: tensors come out smaller, or are gone, and `config.json` says so.

Channels of feed-forward layers go layer by layer, on what the layers before it give by then, and what reads them makes
up for it. Every layer keeps as many, for engines know one width. Or whole layers go: those that change least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.kernels.effort import Effort
from compress.kernels.measure.channels import cheapest, cheapest_effort, energies, magnitudes
from compress.kernels.measure.hessian import shrunk
from compress.kernels.solve.correct import correct_effort, corrected_target
from compress.kernels.solve.repair import repair, repair_effort
from compress.passes.core.base import LayerPass, ModelPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.processes import ALONE, Crew
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost import HEAP, Cost, Extent, walk_cost
from compress.passes.forward.statistics import Drift, Hessian, LinearStats, Statistic
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.narrow.ffn import FFN, ascending, cut, find_ffns, narrowed, width_for, width_of
from compress.passes.narrow.layers import fewer, influences, renumbered, strongest
from compress.passes.narrow.walk import Narrower, Part, narrow


class Shrink(ModelPass):
    """Make the model smaller for every engine: drop channels of its feed-forward layers, or layers, repair the rest."""

    calibrated: ClassVar[bool] = True
    decodes: ClassVar[bool] = True

    to: float | None = Field(None, gt=0, lt=1, description="which part of the decoder layers' parameters to keep")
    ffn: int | None = Field(None, ge=1, description="how many channels feed-forward layers are to have")
    layers: int | None = Field(
        None, ge=1, description="how many layers to keep: those that turn the hidden states most (ShortGPT)"
    )
    axis: Literal["ffn", "layers"] = Field("ffn", description="what `to` is reached by")
    multiple: int = Field(
        64, ge=1, description="`ffn` is a multiple of it: 64 is what kernels like, 256 what K-quants of GGUF need"
    )
    score: Literal["l1", "activation", "hessian"] = Field(
        "hessian",
        description="which channels go: those of the least weights; of the least outputs; or, one after the other, "
        "those that the others make up for best",
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
        if sum(option is not None for option in (self.to, self.ffn, self.layers)) != 1:
            raise ValueError(
                "say `to` (as 0.8), `ffn` (as 1280) or `layers` (as 24), one of them; each in its own step"
            )
        if self.axis != "ffn" and self.to is None:
            raise ValueError("`axis` is of `to`: say that, or leave it out")
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
        ffns = find_ffns(model, anatomy)
        return narrowed(model, ffns, self._width(model, anatomy, ffns))

    @property
    def _by_layers(self) -> bool:
        return self.layers is not None or self.axis == "layers"

    def _count(self, anatomy: Anatomy) -> int:
        """How many layers are to be left. Raises RefusedError for what cannot be."""
        there = len(anatomy.layers)
        count = self.layers or int((self.to or 1.0) * there)
        if not 1 <= count < there:
            raise RefusedError(
                f"shrink: there are {there} layers, and {count} are to be left", f"say layers: 1 to {there - 1}"
            )
        return count

    def _width(self, model: ModelSpec, anatomy: Anatomy, ffns: Sequence[FFN]) -> int:
        """How many channels every feed-forward layer is to have. Raises RefusedError for what cannot be."""
        there = width_of(model, ffns[0])
        width = self.ffn or width_for(model, anatomy, ffns, self.to or 1.0, self.multiple)
        if width % self.multiple:
            nearest = max(1, round(width / self.multiple)) * self.multiple
            raise RefusedError(
                f"shrink: ffn: {width} is no multiple of {self.multiple}", f"say ffn: {nearest}, or another `multiple`"
            )
        if width <= 0:
            raise RefusedError(
                f"shrink: to: {self.to} leaves feed-forward layers no {self.multiple} channels",
                "they alone are narrowed: say a larger part, or a smaller `multiple`",
            )
        if width >= there:
            raise RefusedError(
                f"shrink: feed-forward layers have {there} channels, and are to have {width}", "say a smaller number"
            )
        return width

    def _kinds(self) -> frozenset[type[Statistic]]:
        return frozenset({Hessian, Drift}) if self.correct else frozenset({Hessian})

    def cost(
        self,
        model: ModelSpec,
        anatomy: Anatomy,
        sequences: Extent,
        budget: int,
        following: Sequence[LayerPass] = (),
        crew: Crew = ALONE,
    ) -> Cost:
        if self._by_layers:
            return walk_cost(model, anatomy, sequences, budget)
        ffns = find_ffns(model, anatomy)
        walk = walk_cost(model, anatomy, sequences, budget, streams=2 if self.correct else 1, statistics=True)
        width, effort = self._width(model, anatomy, ffns), walk.effort
        shape = model.tensors[f"{ffns[0].down}.weight"].shape
        for kind in self._kinds():
            effort += kind.effort(sequences[0] * sequences[1], shape[1], shape[0]) * len(ffns)
        effort += self._effort(shape, width) * len(ffns)
        solving = 4 * shape[1] ** 2 + 8 * (2 * sum(shape) + shape[1]) * (shape[1] - width) + 8 * shape[0] * shape[1]
        return replace(walk, effort=effort, memory=walk.memory + int(HEAP * solving))

    def _effort(self, shape: tuple[int, ...], width: int) -> Effort:
        effort = cheapest_effort(shape, shape[1] - width) if self.score == "hessian" else Effort()
        effort += repair_effort(shape, width) if self.repair else Effort()
        return effort + (correct_effort(shape) if self.correct else Effort())

    def model(self, run: Run, stage: Stage) -> Outcome:
        return self._with_fewer_layers(run, stage) if self._by_layers else self._narrower_layers(run, stage)

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

    def _authors(self, run: Run, called: Mapping[str, str]) -> dict[str, str]:
        """Who made the tensors that are `called` so now, and were called otherwise: this step in the end."""
        before = run.left.authors
        return {name: " + ".join(filter(None, (before.get(was), self.name))) for name, was in called.items()}

    def _told(self, run: Run, **figures: Any) -> dict[str, Any]:
        """For the manifest: beside what earlier steps of this kind have said."""
        return {self.name: {**run.left.manifest.get(self.name, {}), **figures}}

    def _narrower_layers(self, run: Run, stage: Stage) -> Outcome:
        planned = self.plan(run.model.spec, run.skeleton.anatomy)
        ffns = find_ffns(run.model.spec, run.skeleton.anatomy)
        was, width = (width_of(spec, ffns[0]) for spec in (run.source.spec, planned))
        records = narrow(run, stage, [[self._part(run.model.spec, ffn, width)] for ffn in ffns])
        run.model.become(planned)
        axes = [name for ffn in ffns for name in ffn.axes(planned)]
        errors = {module: error for record in records for module, error in record.errors.items()}
        return Outcome(
            authors=self._authors(run, {name: name for name in axes}),
            reports={module: {"relative_error": error, "channels": width} for module, error in errors.items()},
            manifest=self._told(run, ffn=width, ffn_before=was),
        )

    def _part(self, model: ModelSpec, ffn: FFN, width: int) -> Part:
        axes = ffn.axes(model)
        rewrite = partial(self._narrower, ffn, axes, width)
        return Part(ffn.down, tuple(axes), rewrite, self._kinds(), residual=self.correct)

    def _narrower(
        self, ffn: FFN, axes: Mapping[str, int], width: int, weights: Mapping[str, Tensor], stats: LinearStats
    ) -> Narrower:
        """Choose channels, cut all that belongs to them, and go on as if the others had never been."""
        down = f"{ffn.down}.weight"
        original = weights[down]
        kept = self.kept(weights, ffn, shrunk(stats[Hessian].matrix, self.shrinkage), width)
        tensors = {**cut(weights, axes, kept), down: self.rewrite(original, stats, kept)}
        return Narrower(
            tensors,
            lambda stored: {down: torch.zeros_like(original).index_copy(1, kept, stored[down].to(original))},
        )

    def kept(self, weights: Mapping[str, Tensor], ffn: FFN, hessian: Tensor, width: int) -> Tensor:
        """The indices [width] int64, ascending, of the channels that stay; `weights` are those of `ffn`, by tensor."""
        down = weights[f"{ffn.down}.weight"]
        count = down.shape[1] - width
        if self.score == "hessian":
            return ascending(cheapest(down, hessian, count)[0], down.shape[1])
        ups = [weights[f"{up}.weight"] for up in ffn.ups]
        scores = magnitudes(down, *ups) if self.score == "l1" else energies(down, hessian)
        return ascending(scores.sort(stable=True).indices[:count], down.shape[1])

    def rewrite(self, down: Tensor, stats: LinearStats, kept: Tensor) -> Tensor:
        """`down` [rows, width] fp32 as it reads the channels `kept` alone."""
        if not self.repair:
            return down[:, kept]
        hessian = stats[Hessian].matrix
        drift = stats[Drift] if self.correct else None
        target = corrected_target(down, drift.matrix, hessian, drift.gap) if drift else down
        return repair(target, shrunk(hessian, self.shrinkage), kept)
