"""One walk over the model for a stage of layer-wise passes: load a layer, gather, rewrite, commit, free."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce

import torch
from torch import Tensor, nn

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import UsageError
from compress.formats.files.native import save_tensors
from compress.formats.files.storage import sha256_file
from compress.passes.core.base import UNREACHED, LayerPass
from compress.passes.core.run import Run
from compress.passes.forward.heap import return_freed_memory
from compress.passes.forward.statistics import LinearStats, Statistic
from compress.passes.forward.walk import Pause, Stream, Walk
from compress.passes.model.anatomy import LayerAnatomy
from compress.passes.model.weights import dense
from compress.passes.sweep.fold import Fold, Folds, Read
from compress.passes.sweep.rewriting import Commit, Rewriting


class Sweep:
    """A stage: neighbouring layer-wise passes over all their targets, unit by unit, resumable at any unit."""

    def __init__(self, run: Run, stage: int, passes: Sequence[LayerPass]) -> None:
        self.run, self.stage, self.passes = run, stage, passes
        self.anatomy = run.skeleton.anatomy
        self.targets = {step: step.targets(self.anatomy) for step in passes}
        self.folder = run.work / f"stage-{stage}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folds = Folds(run.skeleton) if any(step.scales() for step in passes) else None
        self.walk = self._make_walk() if any(step.needs() for step in passes) else None
        self.hold = self.walk is not None and can_hold(run, self.walk)

    def execute(self) -> None:
        """Do what is left to do. Every unit is committed: its file, its hidden states, then its journal line."""
        units = list(self._units())
        committed = self.run.journal.of(stage=self.stage, kind="unit")
        for record in committed:
            self.run.model.overlay(self.run.work / record["file"])
        title = " + ".join(step.name for step in self.passes)
        self.run.reporter.start(title, len(units), "layer", done=len(committed))
        for name, process in units[len(committed) :]:
            started = time.perf_counter()
            commit = process()
            self._commit(name, commit, time.perf_counter() - started)
            self._tell_unreached(commit)
            errors = [float(report["relative_error"]) for report in commit.reports.values()]
            self.run.reporter.advance(name, error=sum(errors) / len(errors) if errors else 0.0)
        self.run.reporter.finish()
        self.run.model.round_as(self._planned())

    def _planned(self) -> ModelSpec:
        """The headers that this stage was to leave; weights and scales have come, unit by unit."""
        return reduce(lambda spec, step: step.plan(spec, self.anatomy), self.passes, self.run.model.spec)

    def _tell_unreached(self, commit: Commit) -> None:
        unreached = [name for name, report in commit.reports.items() if report.get("reason") == UNREACHED]
        if unreached:
            self.run.reporter.note(f"{UNREACHED}, so it is rounded to nearest: {', '.join(unreached)}")

    def _make_walk(self) -> Walk:
        if self.run.calibration is None:
            names = ", ".join(step.name for step in self.passes if step.needs())
            raise UsageError(f"{names} needs calibration data", "put `- calibrate: {data: builtin}` before it")
        return calibration_walk(self.run, self.stage, [kind for step in self.passes for kind in step.needs()])

    def _units(self) -> Iterator[tuple[str, partial[Commit]]]:
        targeted = frozenset[str]().union(*self.targets.values())
        embedding, head = (name.removesuffix(".weight") for name in (self.anatomy.embedding, self.anatomy.head))
        if embedding in targeted and not self.anatomy.tied:
            yield embedding, partial(self._end_unit, embedding)
        for index, layer in enumerate(self.anatomy.layers):
            yield layer.name, partial(self._layer_unit, index)
        last = embedding if self.anatomy.tied else head
        if last in targeted:
            yield last, partial(self._end_unit, last, with_statistics=True)

    def _layer_unit(self, index: int) -> Commit:
        layer = self.anatomy.layers[index]
        commit = Commit()
        if self.walk is None:
            for siblings in layer.siblings:
                weights = {name: self._weight(name) for name in siblings if self._wanted(name)}
                self._rewrite(weights, LinearStats(frozenset(), 0, self.run.device), commit, None)
            return commit
        if index == 0:
            self.walk.start()
        modules = [self.run.skeleton.layer(index, stream.weights) for stream in self.walk.streams]
        folds = self.folds.of(index, modules[0], self._reader(commit)) if self.folds else {}
        pauses = [
            pause
            for siblings in layer.siblings
            if (pause := self._pause_at(modules[0], layer, siblings, commit, folds))
        ]
        self.walk.layer(index, modules, pauses, hold=self.hold)
        return commit

    def _pause_at(
        self,
        module: nn.Module,
        layer: LayerAnatomy,
        siblings: Sequence[str],
        commit: Commit,
        folds: Mapping[str, Fold],
    ) -> Pause | None:
        wanted = {name: module.get_submodule(layer.modules[name]) for name in siblings if self._wanted(name)}
        if not wanted:
            return None
        weights = {name: linear.get_parameter("weight") for name, linear in wanted.items()}
        return Pause(
            first=layer.modules[siblings[0]],
            in_features=next(iter(weights.values())).shape[1],
            kinds=self._kinds(wanted),
            rewrite=lambda stats: self._rewrite(weights, stats, commit, weights, folds.get(siblings[0])),
            residual=self._residual(layer, siblings),
        )

    def _residual(self, layer: LayerAnatomy, siblings: Sequence[str]) -> str | None:
        """Where to see what their output is added to, if a statistic asks for it."""
        asked = any(kind.residual for kind in self._kinds(siblings))
        return (
            self.run.skeleton.residuals(layer).get(layer.modules[siblings[0]]) if asked and len(siblings) == 1 else None
        )

    def _reader(self, commit: Commit) -> Read:
        """Tensors as the run has left them so far, this unit's included."""
        return lambda name: commit.tensors[name] if name in commit.tensors else self.run.model.read(name)

    def _end_unit(self, name: str, with_statistics: bool = False) -> Commit:
        commit, weights = Commit(), {name: self._weight(name)}
        if self.walk is None or not with_statistics:
            self._rewrite(weights, LinearStats(frozenset(), 0, self.run.device), commit, None)
            return commit
        project, head = self.run.skeleton.back(self.walk.streams[0].weights)
        rewrite = partial(self._rewrite, weights, commit=commit, place=None)
        self.walk.head(Pause("", weights[name].shape[1], self._kinds([name]), rewrite), head, project)
        return commit

    def _wanted(self, name: str) -> bool:
        return any(name in targets for targets in self.targets.values())

    def _kinds(self, names: Mapping[str, object] | Sequence[str]) -> frozenset[type[Statistic]]:
        steps = [step for step, targets in self.targets.items() if targets.intersection(names)]
        return frozenset[type[Statistic]]().union(*(step.needs() for step in steps))

    def _weight(self, name: str) -> Tensor:
        return dense(self.run.model)(f"{name}.weight").to(self.run.device)

    def _rewrite(
        self,
        weights: Mapping[str, Tensor],
        stats: LinearStats,
        commit: Commit,
        place: Mapping[str, Tensor] | None,
        fold: Fold | None = None,
    ) -> None:
        """Let each pass rewrite its targets among `weights`, in place where the forward goes on with them."""
        rewriting = Rewriting(weights, stats, commit, fold)
        for step, targets in self.targets.items():
            rewriting.take(step, targets)
        rewriting.finish(place)

    def _authors(self, tensor: str) -> str:
        """The passes that rewrote a tensor, joined by +: those that target it, else the whole stage."""
        module = tensor.removesuffix(".weight")
        names = [step.name for step, targets in self.targets.items() if module in targets]
        return " + ".join(names or [step.name for step in self.passes])

    def _commit(self, name: str, commit: Commit, seconds: float) -> None:
        number = len(self.run.journal.of(stage=self.stage, kind="unit"))
        path = self.folder / f"unit-{number:04d}.safetensors"
        save_tensors(path, commit.tensors)
        record = {
            "stage": self.stage,
            "kind": "unit",
            "unit": name,
            "file": str(path.relative_to(self.run.work)),
            "sha256": sha256_file(path),
            "tensors": commit.reports,
            "authors": {tensor: self._authors(tensor) for tensor in commit.tensors},
            "seconds": seconds,
        }
        self.run.journal.append(record)
        self.run.model.overlay(path)
        return_freed_memory()
        if self.walk and name in {layer.name for layer in self.anatomy.layers}:
            self.walk.finish(1 + [layer.name for layer in self.anatomy.layers].index(name))


def calibration_walk(run: Run, stage: int, kinds: Iterable[type[Statistic]]) -> Walk:
    """The calibration sequences through the model; through the untouched one beside it, if a statistic wants that."""
    sequences = run.calibration
    assert sequences is not None  # the plan refuses a run without
    teacher = any(kind.teacher for kind in kinds)
    models: list[Checkpoint] = [run.model, run.source] if teacher else [run.model]
    streams = [
        Stream(dense(model), run.hidden_states(f"stage-{stage}-{number}", sequences))
        for number, model in enumerate(models)
    ]
    return Walk(run.skeleton, sequences, streams)


def can_hold(run: Run, walk: Walk) -> bool:
    """Whether all sequences may pause at siblings, so that one forward does it."""
    shapes = run.model.spec.tensors
    widest = max(shapes[f"{name}.weight"].shape[1] for name in run.skeleton.anatomy.linears)
    return run.can_hold(walk.held_bytes(widest))


def sweep(run: Run, stage: int, passes: Sequence[LayerPass]) -> None:
    """Execute one stage of layer-wise passes, with the bits that a stage before it chose."""
    with torch.no_grad():
        Sweep(run, stage, [step.with_bits(run.bits) for step in passes]).execute()
