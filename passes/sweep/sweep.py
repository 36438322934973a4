"""One walk over the model for a stage of layer-wise passes: load a layer, gather, rewrite, commit, free."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn

from compress.formats.errors import UsageError
from compress.kernels.laps import lap
from compress.kernels.share import WHOLE, Share
from compress.passes.core.base import LayerPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import Guide, LinearStats
from compress.passes.forward.pauses import Pause
from compress.passes.forward.statistics import Hessian, Statistic
from compress.passes.forward.walk import Walk
from compress.passes.model.anatomy import LayerAnatomy
from compress.passes.model.weights import dense
from compress.passes.sweep.calibrated import calibration_passage, calibration_walk
from compress.passes.sweep.cost import sweep_cost
from compress.passes.sweep.fold import Fold, Folds, Read
from compress.passes.sweep.guidance import Guidance
from compress.passes.sweep.rewriting import Leavings, Rewriting
from compress.passes.sweep.units import Units


class Sweep:
    """A stage: neighbouring layer-wise passes over all their targets, unit by unit, resumable at any unit.

    Processes that `share` it have the same statistics: all rewrite alike, or divide that, and one of them commits.
    """

    def __init__(self, run: Run, stage: Stage, passes: Sequence[LayerPass], share: Share = WHOLE) -> None:
        self.run, self.stage, self.passes, self.share = run, stage, passes, share
        self.anatomy = run.skeleton.anatomy
        self.targets = {step: step.targets(self.anatomy) for step in passes}
        self.folds = Folds(run.skeleton) if any(step.scales() for step in passes) else None
        self.walk = self._make_walk() if any(step.needs() for step in passes) else None
        guided = {name: step for step in passes if step.row_parts() for name in self.targets[step]}
        self.guidance = Guidance(run, stage, guided) if guided else None
        self.ahead = self.walk is not None and run.reads_ahead(calibration_passage(run, _needs(passes)), share)
        self.units = Units(run, stage, share, self._walked)

    def execute(self) -> Outcome:
        """Do what is left to do. Every unit is committed: its hidden states, its file, then its journal line.

        The last two are written while the next unit begins, and are there before it rewrites anything.
        """
        works = list(self._works())
        planned = reduce(lambda spec, step: step.plan(spec, self.anatomy), self.passes, self.run.model.spec)
        committed = self.units.committed()
        self.units.take_over(committed)
        if self.guidance:
            self.run.first(self.guidance.gather)
        self.run.reporter.start(self.stage.title, len(works), "layer", done=len(committed))
        with self.units.settled():
            for name, process in works[len(committed) :]:
                started = time.perf_counter()
                left = process()
                left.lend()
                self.units.settle()
                self.units.commit(name, left, time.perf_counter() - started)
                for told in left.unreached():
                    self.run.reporter.note(told)
        self.run.reporter.finish()
        done = self.units.committed()
        if not self.share.main:
            self.units.take_over(done[len(committed) :])
        self.run.model.become(planned)
        return Outcome(
            authors={tensor: author for unit in done for tensor, author in unit.authors.items()},
            reports={module: report.flat() for unit in done for module, report in unit.tensors.items()},
        )

    def _walked(self, name: str) -> None:
        """The unit `name` is committed: if it is a layer, nothing goes back before it."""
        names = [layer.name for layer in self.anatomy.layers]
        if self.walk and name in names:
            self.walk.finish(1 + names.index(name))

    def _make_walk(self) -> Walk | None:
        """None where the run goes by energies: there is nothing to run."""
        if self.run.left.energies is not None:
            return None
        if self.run.left.calibration is None:
            names = ", ".join(step.name for step in self.passes if step.needs())
            raise UsageError(f"{names} needs calibration data", "put `- calibrate: {data: builtin}` before it")
        return calibration_walk(self.run, self.stage, _needs(self.passes), self.share)

    def _works(self) -> Iterator[tuple[str, partial[Leavings]]]:
        targeted = frozenset[str]().union(*self.targets.values())
        embedding, head = (name.removesuffix(".weight") for name in (self.anatomy.embedding, self.anatomy.head))
        if embedding in targeted and not self.anatomy.tied:
            yield embedding, partial(self._end_unit, embedding)
        for index, layer in enumerate(self.anatomy.layers):
            yield layer.name, partial(self._layer_unit, index)
        last = embedding if self.anatomy.tied else head
        if last in targeted:
            yield last, partial(self._end_unit, last, with_statistics=True)

    def _layer_unit(self, index: int) -> Leavings:
        layer = self.anatomy.layers[index]
        left = Leavings()
        if self.walk is None:
            folds = self._folds_alone(index, left)
            for siblings in layer.siblings:
                weights = {name: self._weight(name) for name in siblings if self._wanted(name)}
                left.take(self._rewrite(weights, self._known(weights), folds.get(siblings[0]))[0])
            return left
        if index == 0:
            self.units.settle()  # an embedding that was rewritten is where the walk starts from
            self.walk.start()
        while (done := self._tried(index, self.walk)) is None:
            self.walk.shrink()
        return done

    def _tried(self, index: int, walk: Walk) -> Leavings | None:
        """A layer run and rewritten; None if memory ran out, and all is to be done again in smaller batches."""
        try:
            with self.share.together():
                return self._run_layer(index, walk)
        except torch.OutOfMemoryError:
            if not walk.may_shrink:
                raise
            return None

    def _run_layer(self, index: int, walk: Walk) -> Leavings:
        layer, left = self.anatomy.layers[index], Leavings()
        modules = walk.modules(index, self.ahead)
        folds = self.folds.of(index, modules[0], self._reader(left)) if self.folds else {}
        pauses = [
            pause for siblings in layer.siblings if (pause := self._pause_at(index, modules[0], siblings, left, folds))
        ]
        if not pauses:
            self.units.settle()
        walk.layer(index, modules, pauses, hold=walk.flow.hold)
        left.sort(name for siblings in layer.siblings for name in siblings)
        return left

    def _pause_at(
        self,
        index: int,
        module: nn.Module,
        siblings: Sequence[str],
        left: Leavings,
        folds: Mapping[str, Fold],
    ) -> Pause | None:
        layer = self.anatomy.layers[index]
        wanted = {name: module.get_submodule(layer.modules[name]) for name in siblings if self._wanted(name)}
        if not wanted:
            return None
        weights = {name: linear.get_parameter("weight") for name, linear in wanted.items()}
        kinds, guide = self._guided(index, wanted)

        def take(made: tuple[Leavings, Mapping[str, Tensor]]) -> None:
            left.take(made[0])
            for name, weight in weights.items():
                weight.copy_(made[1][name])

        return Pause(
            first=layer.modules[siblings[0]],
            in_features=next(iter(weights.values())).shape[1],
            kinds=kinds,
            rewrite=lambda stats: self._rewrite(weights, stats, folds.get(siblings[0])),
            take=take,
            residual=self._residual(layer, siblings),
            guide=guide,
        )

    def _residual(self, layer: LayerAnatomy, siblings: Sequence[str]) -> str | None:
        """Where to see what their output is added to, if a statistic asks for it."""
        asked = any(kind.residual for kind in self._kinds(siblings))
        return (
            self.run.skeleton.residuals(layer).get(layer.modules[siblings[0]]) if asked and len(siblings) == 1 else None
        )

    def _reader(self, left: Leavings) -> Read:
        """Tensors as the run has left them so far, this unit's included."""
        return lambda name: left.tensors[name] if name in left.tensors else self.run.model.read(name)

    def _end_unit(self, name: str, with_statistics: bool = False) -> Leavings:
        left, weights = Leavings(), {name: self._weight(name)}
        if self.walk is None or not with_statistics:
            left.take(self._rewrite(weights, self._known(weights if with_statistics else {}))[0])
            return left
        project, head = self.run.skeleton.back(self.walk.streams[0].weights)
        rewrite = partial(self._rewrite, weights)
        pause = Pause("", weights[name].shape[1], self._kinds([name]), rewrite, take=lambda made: left.take(made[0]))
        self.walk.head(pause, head, project)
        return left

    def _known(self, weights: Mapping[str, Tensor]) -> LinearStats:
        """What is known of the inputs of siblings without running anything."""
        energies = self.run.left.energies
        if energies is None or not weights or not (kinds := self._kinds(weights)):
            return LinearStats(frozenset(), 0, self.run.device)
        width = next(iter(weights.values())).shape[1]
        stats = LinearStats(kinds, width, self.run.device)
        for energy in [energies[name] for name in weights if name in energies and energies[name].tokens][:1]:
            if len(energy.sums) != width:
                raise UsageError(
                    f"the imatrix is of {len(energy.sums):,} inputs of {next(iter(weights))}, now {width:,}",
                    "calibrate on text after what changes shapes",
                )
            stats.take_energy(energy.sums, energy.tokens)
        return stats

    def _folds_alone(self, index: int, left: Leavings) -> dict[str, Fold]:
        """The folds of a layer that nothing else runs through."""
        if self.folds is None:
            return {}
        module = self.run.skeleton.layer(index, dense(self.run.model))
        return self.folds.of(index, module, self._reader(left))

    def _wanted(self, name: str) -> bool:
        return any(name in targets for targets in self.targets.values())

    def _steps(self, names: Iterable[str]) -> list[LayerPass]:
        """The passes that rewrite any of these modules."""
        return [step for step, targets in self.targets.items() if targets.intersection(names)]

    def _kinds(self, names: Iterable[str]) -> frozenset[type[Statistic]]:
        return _needs(self._steps(names))

    def _guided(self, index: int, names: Iterable[str]) -> tuple[frozenset[type[Statistic]], Guide | None]:
        """The statistics in which tokens of siblings count alike, and what guides the others, if there are such."""
        steps = self._steps(names)
        kinds = _needs(step for step in steps if step.row_parts())
        guide = self.guidance.guide(index, names, kinds) if self.guidance and kinds else None
        # Errors are reported by the Hessian, however the weights were found.
        return (_needs(step for step in steps if not step.row_parts()) | {Hessian} if guide else _needs(steps)), guide

    def _weight(self, name: str) -> Tensor:
        return dense(self.run.model)(f"{name}.weight").to(self.run.device)

    def _rewrite(
        self, weights: Mapping[str, Tensor], stats: LinearStats, fold: Fold | None = None
    ) -> tuple[Leavings, Mapping[str, Tensor]]:
        """What passes make of their targets among `weights`, and the values that the forward goes on with."""
        self.units.settle()
        masks = {name: self.run.model.kept(name) for name in weights}
        kept = {name: mask.to(self.run.device) for name, mask in masks.items() if mask is not None}
        rewriting = Rewriting(weights, stats, left := Leavings(), fold, kept)
        with lap("solve"):
            for step, targets in self.targets.items():
                rewriting.take(step, targets)
            return left, rewriting.finish()


def _needs(steps: Iterable[LayerPass]) -> frozenset[type[Statistic]]:
    return frozenset[type[Statistic]]().union(*(step.needs() for step in steps))


def sweep(run: Run, stage: Stage, passes: Sequence[LayerPass]) -> Outcome:
    """Execute one stage of layer-wise passes, with the bits (or types) and shares of zeros that one before chose.

    All processes of the run do it together where they share it, else the main one first.
    """
    bits, shares = run.left.bits or {}, run.left.shares or {}
    steps = [step.with_bits(bits).with_shares(shares) for step in passes]
    extent = (texts.count, texts.length) if (texts := run.left.calibration) else (0, 0)
    cost = sweep_cost(steps, run.model.spec, run.skeleton.anatomy, extent, run.max_ram, run.crew)
    with torch.no_grad():
        if cost.shared:
            return Sweep(run, stage, steps, run.share(cost)).execute()
        return run.first(lambda: Sweep(run, stage, steps).execute())
