"""What each candidate costs: every linear rewritten at every one, and the model's KL at any choice of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from compress.formats.files.native import NativeFile, save_tensors
from compress.kernels.measure.error import output_energy
from compress.kernels.qtensor import QTensor
from compress.passes.choice.bit_budget import Judge, Unit, spread
from compress.passes.core.base import LayerPass
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.pauses import Pause
from compress.passes.forward.scores import score
from compress.passes.forward.statistics import Hessian
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.anatomy import kind_of
from compress.passes.model.weights import dense
from compress.passes.sweep.calibrated import calibration_walk

Candidate = float | str
"""Bits, the name of a type, or a share of zeros."""


class Tried(Committed):
    """A layer was tried: by module, the energy of its output, then that of the error at every candidate."""

    energies: Mapping[str, list[float]]


class Checked(Committed):
    """The KL divergence of one choice; checks are numbered in their order."""

    number: int
    divergence: float


class Trials:
    """`steps`, one for every `Candidate`, tried on `modules`; each layer's trials and errors are committed.

    A layer's trials are solved on the inputs that the untouched layers before it give, so that they can be put
    together in any choice; they take a byte or two per weight and candidate on disk until `clear`.
    """

    def __init__(self, run: Run, stage: Stage, steps: Mapping[Any, LayerPass], modules: frozenset[str]) -> None:
        self.run, self.stage, self.steps, self.modules = run, stage, steps, modules

    def measure(self) -> None:
        """One forward of the calibration sequences, or what is left of it: it also is what KL is measured against."""
        kinds = frozenset({Hessian}).union(*(step.needs() for step in self.steps.values()))
        walk = calibration_walk(self.run, self.stage, kinds)
        layers = self.run.skeleton.anatomy.layers
        done = self.run.journal.of(Tried, self.stage.key)
        self.run.reporter.start("measure sensitivities", len(layers), "layer", done=len(done))
        trials: dict[str, Tensor | QTensor] = {}
        energies: dict[str, list[float]] = {}

        def pauses(index: int, module: nn.Module) -> list[Pause]:
            found = []
            for siblings in layers[index].siblings:
                local = {name: layers[index].modules[name] for name in siblings}
                linears = {name: module.get_submodule(local[name]) for name in siblings if name in self.modules}
                weights = {name: linear.get_parameter("weight") for name, linear in linears.items()}
                if weights:
                    width = next(iter(weights.values())).shape[1]
                    rewrite = partial(self._try, weights, trials, energies)
                    found.append(Pause(local[siblings[0]], width, kinds, rewrite))
            return found

        def commit(boundary: int) -> None:
            save_tensors(self.stage.file(f"trials-{boundary:04d}.safetensors"), trials)
            self.run.journal.append(Tried(stage=self.stage.key, energies=energies))
            self.run.reporter.advance(layers[boundary - 1].name)
            trials.clear()
            energies.clear()

        walk.carry(len(done), commit, pauses, hold=walk.flow.hold)
        self.run.reporter.finish()

    def errors(self, units: Sequence[Unit]) -> Tensor:
        """[units, candidates] fp64: error energy over output energy, summed over the sorts of linears in a unit.

        Experts of one layer are one sort: what few tokens reach counts little.
        """
        energies = self._energies()
        return torch.stack([self._unit_errors([(name, energies[name]) for name in unit.modules]) for unit in units])

    def judge(self, units: Sequence[Unit], candidates: Sequence[Candidate], sequences: int) -> Judge:
        """`divergence` of one choice after the other, each the index of a candidate for every unit."""
        numbers = count()
        return lambda chosen: self.divergence(next(numbers), spread(units, chosen, candidates), sequences)

    def divergence(self, number: int, chosen: Mapping[str, Candidate], sequences: int) -> float:
        """KL in nats per token over the first `sequences` for calibration, untouched ‖ `chosen`: check `number`."""
        known = {record.number: record.divergence for record in self.run.journal.of(Checked, self.stage.key)}
        if number not in known:
            known[number] = self._diverge(chosen, sequences)
            self.run.journal.append(Checked(stage=self.stage.key, number=number, divergence=known[number]))
        return known[number]

    def clear(self) -> None:
        """Delete the trials and the hidden states."""
        shutil.rmtree(self.stage.folder, ignore_errors=True)

    def _try(
        self,
        weights: Mapping[str, Tensor],
        trials: dict[str, Tensor | QTensor],
        energies: dict[str, list[float]],
        stats: LinearStats,
    ) -> None:
        """Solve linears that share an input at every candidate; energies are [output, error, error, …]."""
        hessian = stats[Hessian].matrix
        originals = {name: weight.detach() for name, weight in weights.items()}
        energies.update({name: [output_energy(weight, hessian)] for name, weight in originals.items()})
        for candidate, step in self.steps.items():
            for name, change in step.siblings(originals, stats).items():
                trials[_trial(name, candidate)] = self._stored(name, change.weight)
                energies[name].append(output_energy(originals[name] - change.values, hessian))

    def _stored(self, name: str, weight: Tensor | QTensor) -> Tensor | QTensor:
        if isinstance(weight, QTensor):
            return weight
        return weight.to("cpu", getattr(torch, self.run.model.spec.tensors[f"{name}.weight"].dtype))

    def _energies(self) -> dict[str, list[float]]:
        records = self.run.journal.of(Tried, self.stage.key)
        return {name: energies for record in records for name, energies in record.energies.items()}

    def _unit_errors(self, energies: Sequence[tuple[str, Sequence[float]]]) -> Tensor:
        """[candidates] of [output, error, error, …] by module."""
        sorts: dict[str, list[Sequence[float]]] = {}
        for name, row in energies:
            sorts.setdefault(kind_of(name), []).append(row)
        sums = torch.stack([torch.tensor(rows, dtype=torch.float64).sum(0) for rows in sorts.values()])
        return torch.where(sums[:, :1] > 0, sums[:, 1:] / sums[:, :1], 0.0).sum(0)

    def _diverge(self, chosen: Mapping[str, Candidate], count: int) -> float:
        run, stage, sequences = self.run, self.stage, self.run.left.calibration
        assert sequences is not None  # the plan refuses a run without
        files = [NativeFile(path) for path in sorted(stage.folder.glob("trials-*.safetensors"))]
        trials = {name: file for file in files for name in file.specs}
        model = dense(run.model)

        def read(name: str) -> Tensor:
            module = name.removesuffix(".weight")
            if module not in chosen or module == name:
                return model(name)
            trial = trials[key := _trial(module, chosen[module])].read(key)
            return trial.dequantize() if isinstance(trial, QTensor) else trial.float()

        judged = sequences.batch(0, min(count, sequences.count))
        untouched = Stream(model, stage.hidden_states("0", sequences, run.skeleton.width))
        tried = Stream(replace(model, read=read), stage.hidden_states("tried", judged, run.skeleton.width))
        candidate = Walk(run.skeleton, judged, [tried], run.reporter.tell, flow=run.flow(judged))
        run.reporter.start("check KL", len(run.skeleton.anatomy.layers), "layer")
        candidate.carry(0, lambda boundary: run.reporter.advance())
        run.reporter.tell("scoring")
        divergence = score(candidate, Walk(run.skeleton, judged, [untouched], flow=candidate.flow)).kl_divergence
        run.reporter.finish()
        assert divergence is not None
        return divergence


def _trial(module: str, candidate: Candidate) -> str:
    return f"{module}.{candidate if isinstance(candidate, str) else f'{candidate:g}'}"
