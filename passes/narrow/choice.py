"""Which units of a layer's inside go, and how what reads them makes up for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.kernels.measure.blocks import block_energies, blocks_effort, cheapest_blocks
from compress.kernels.measure.channels import cheapest, cheapest_effort, energies, magnitudes
from compress.kernels.measure.hessian import shrunk
from compress.kernels.solve.correct import correct_effort, corrected_target
from compress.kernels.solve.repair import repair, repair_effort
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Drift, Hessian, Statistic
from compress.passes.narrow.inner import Inner, ascending
from compress.passes.narrow.walk import Narrower, Part

Score = Literal["l1", "activation", "hessian"]


@dataclass(frozen=True)
class Choice:
    """By which `score` units go; whether what reads them is repaired, at `correct`ed targets.

    By the part `shrinkage` costs and repair take the Hessian's entries off its diagonal smaller.
    """

    score: Score
    repair: bool
    shrinkage: float
    correct: bool

    def kinds(self) -> frozenset[type[Statistic]]:
        """The statistics that it wants of the inputs of what reads the units."""
        return frozenset({Hessian, Drift}) if self.correct else frozenset({Hessian})

    def part(self, model: ModelSpec, inner: Inner, units: int) -> Part:
        """The part of a layer of which so many `units` stay."""
        axes = inner.axes(model)
        rewrite = partial(self._narrower, inner, axes, units)
        return Part(inner.reader, tuple(axes), rewrite, self.kinds(), residual=self.correct)

    def effort(self, shape: tuple[int, ...], inner: Inner, units: int) -> Effort:
        """What it takes for one layer, whose reader has this shape."""
        gone, size = inner.units - units, shape[1] // inner.units
        effort = repair_effort(shape, units * size) if self.repair else Effort()
        if self.score == "hessian":
            effort += cheapest_effort(shape, gone) if size == 1 else blocks_effort(shape, gone, size)
        return effort + (correct_effort(shape) if self.correct else Effort())

    def memory(self, shape: tuple[int, ...], inner: Inner, units: int) -> int:
        """Bytes beside the statistics that solving takes."""
        rows, columns = shape
        gone = columns - units * (columns // inner.units)
        return 4 * columns**2 + 8 * (2 * sum(shape) + columns) * gone + 8 * rows * columns

    def _narrower(
        self, inner: Inner, axes: Mapping[str, int], units: int, weights: Mapping[str, Tensor], stats: LinearStats
    ) -> Narrower:
        """Choose units, cut all that belongs to them, and go on as if the others had never been."""
        name = f"{inner.reader}.weight"
        reader, hessian = weights[name], shrunk(stats[Hessian].matrix, self.shrinkage)
        kept = self._kept(inner, weights, hessian, units)
        places = inner.places(kept, reader.shape[1])
        left = repair(self._target(reader, stats), hessian, places) if self.repair else reader[:, places]
        return Narrower(
            {**inner.cut(weights, axes, kept), name: left},
            lambda stored: {name: torch.zeros_like(reader).index_copy(1, places, stored[name].to(reader))},
        )

    def _kept(self, inner: Inner, weights: Mapping[str, Tensor], hessian: Tensor, units: int) -> Tensor:
        """The units [units] int64, ascending, that stay; `weights` are those of `inner`, by tensor."""
        reader, gone = weights[f"{inner.reader}.weight"], inner.units - units
        size = reader.shape[1] // inner.units
        if self.score == "hessian":
            single = size == 1
            order, _ = cheapest(reader, hessian, gone) if single else cheapest_blocks(reader, hessian, gone, size)
        else:
            scores = self._magnitudes(inner, weights) if self.score == "l1" else _energies(reader, hessian, size)
            order = scores.sort(stable=True).indices[:gone]
        return ascending(order, inner.units)

    @staticmethod
    def _magnitudes(inner: Inner, weights: Mapping[str, Tensor]) -> Tensor:
        """Σ|w| [units] of all that writes and reads each unit."""
        writers = [weights[f"{writer}.weight"].reshape(inner.units, -1) for writer in inner.writers]
        reader = weights[f"{inner.reader}.weight"].unflatten(1, (inner.units, -1)).transpose(1, 2)
        return magnitudes(reader.flatten(0, 1), *writers)

    def _target(self, reader: Tensor, stats: LinearStats) -> Tensor:
        """What the outputs are to be, as a weight [rows, columns] of all inputs."""
        if not self.correct:
            return reader
        drift = stats[Drift]
        return corrected_target(reader, drift.matrix, stats[Hessian].matrix, drift.gap)


def _energies(reader: Tensor, hessian: Tensor, size: int) -> Tensor:
    return energies(reader, hessian) if size == 1 else block_energies(reader, hessian, size)
