"""The walk that makes layers narrower: one after the other, on what those before it give by then. A kill costs one.

A layer has its old shapes until the walk is over: what is gone from it is 0 there, or what stands for it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compress.formats.files.native import save_tensors
from compress.formats.files.storage import sha256_file
from compress.kernels.measure.error import relative_error
from compress.passes.core.journal import Committed
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.pauses import Pause
from compress.passes.forward.statistics import Hessian, Statistic
from compress.passes.sweep.calibrated import calibration_walk


class Narrowed(Committed):
    """A layer is narrower: its tensors lie in `file`; `errors` are those of linears' outputs, as parts of their energy.

    These are of the linears that were rewritten where they read the inputs which were seen, by module.
    """

    boundary: int
    file: str
    sha256: str
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Narrower:
    """What becomes of the tensors of a part: `tensors` fp32, smaller, by name.

    `widened` gives of them, as they are stored, those that the layer goes on with in their old shapes, by name.
    `errors` are what is lost, by module; where None, they are told by what the widened matrices give.
    """

    tensors: Mapping[str, Tensor]
    widened: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    errors: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Part:
    """What of a layer becomes narrower: before the linear `at` `rewrite` gets its `tensors` and statistics.

    Names are the checkpoint's; tensors come fp32 on the run's device. The statistics are those of `kinds` of the inputs
    of `at`, and `Hessian`. `residual`: `Drift` is to see what the output of `at` is added to.
    """

    at: str
    tensors: tuple[str, ...]
    rewrite: Callable[[Mapping[str, Tensor], LinearStats], Narrower]
    kinds: frozenset[type[Statistic]] = frozenset()
    residual: bool = False


def narrow(run: Run, stage: Stage, parts: Sequence[Sequence[Part]]) -> list[Narrowed]:
    """Make narrower what `parts` names of each layer, in the order of the forward; `run.model` has the tensors then.

    Its configuration is the caller's to change. What an earlier process committed is taken over.
    """
    done = run.journal.of(Narrowed, stage.key)
    run.reporter.start(stage.title, len(parts), "layer", done=len(done))
    with torch.no_grad():
        _Narrowing(run, stage, parts).execute(len(done))
    run.reporter.finish()
    records = run.journal.of(Narrowed, stage.key)
    for record in records:
        run.model.overlay(stage.file(record.file))
    return records


class _Narrowing:
    def __init__(self, run: Run, stage: Stage, parts: Sequence[Sequence[Part]]) -> None:
        self.run, self.stage, self.parts = run, stage, parts
        self.left: dict[str, Tensor] = {}
        self.errors: dict[str, float] = {}

    def execute(self, done: int) -> None:
        kinds = frozenset[type[Statistic]]().union(*(part.kinds for layer in self.parts for part in layer))
        walk = calibration_walk(self.run, self.stage, kinds)
        walk.carry(done, self._commit, lambda *at: list(self._pauses(*at)), hold=walk.flow.hold, in_turn=True)

    def _pauses(self, index: int, module: nn.Module) -> Iterator[Pause]:
        self.left, self.errors = {}, {}
        layer = self.run.skeleton.anatomy.layers[index]
        residuals = self.run.skeleton.residuals(layer) if any(part.residual for part in self.parts[index]) else {}
        places = {stored: module.get_parameter(name) for name, stored in self.run.skeleton.parameters(index).items()}
        for part in self.parts[index]:
            local, columns = layer.modules[part.at], places[f"{part.at}.weight"].shape[1]
            rewrite = partial(self._rewrite, part, places)
            yield Pause(
                local, columns, part.kinds | {Hessian}, rewrite, residuals.get(local) if part.residual else None
            )

    def _rewrite(self, part: Part, places: Mapping[str, Tensor], stats: LinearStats) -> None:
        weights = {name: self._weight(name) for name in part.tensors}
        narrower = part.rewrite(weights, stats)
        stored = {name: tensor.to("cpu", self._dtype(name)) for name, tensor in narrower.tensors.items()}
        self.left |= {name: tensor.contiguous() for name, tensor in stored.items()}
        self.errors |= narrower.errors or {}
        for name, wide in narrower.widened(
            {name: tensor.to(self.run.device) for name, tensor in stored.items()}
        ).items():
            places[name].copy_(wide)
            if wide.ndim == 2 and narrower.errors is None:
                error = relative_error(weights[name], places[name], stats[Hessian].matrix)
                self.errors[name.removesuffix(".weight")] = error

    def _weight(self, name: str) -> Tensor:
        """As the layer has it by now: a part before may have rewritten it."""
        tensor = self.left[name] if name in self.left else self.run.model.read(name)
        assert isinstance(tensor, Tensor)  # the plan refuses what is quantized
        return tensor.to(self.run.device, torch.float32)

    def _dtype(self, name: str) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.run.model.spec.tensors[name].dtype)
        return dtype

    def _commit(self, boundary: int) -> None:
        path = self.stage.file(f"unit-{boundary - 1:04d}.safetensors")
        save_tensors(path, self.left)
        record = Narrowed(
            stage=self.stage.key, boundary=boundary, file=path.name, sha256=sha256_file(path), errors=self.errors
        )
        self.run.journal.append(record)
        name, errors = self.run.skeleton.anatomy.layers[boundary - 1].name, self.errors.values()
        self.run.reporter.advance(name, error=sum(errors) / len(errors) if errors else 0.0)
