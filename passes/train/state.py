"""Training in the journal: what a killed run needs to go on with the same curve to the same bytes.

A state is one safetensors file: what learns, the optimizer's moments, the random state. The data's position and
the rate follow from the step. It is written and named, then its record is appended, then the one before is dropped.
Tensors are whole in it, also where they are sharded over processes while they learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.formats.errors import RefusedError
from compress.formats.files.native import NativeFile, save_tensors
from compress.formats.files.storage import sha256_file
from compress.passes.core.journal import Committed, Journal
from compress.passes.core.processes import Processes
from compress.passes.core.stage import Stage
from compress.passes.train.shard import sharded_as, whole


class Checkpointed(Committed):
    """Training has come to `step` (steps done). `losses` are those since the record before, one per step.

    `measured` is what was found on the held-out sequences since then, as (steps done, loss); `best` the file of what
    learned where that was least. `world` is how many processes trained.
    """

    step: int
    file: str
    sha256: str
    losses: tuple[float, ...]
    measured: tuple[tuple[int, float], ...]
    best: str
    world: int


class States:
    """The states of one stage's training, on disk and in its journal.

    All `processes` that train save and take up together; the main one of them writes.
    """

    def __init__(
        self, journal: Journal, stage: Stage, parameters: Mapping[str, nn.Parameter], processes: Processes
    ) -> None:
        self._journal, self._stage, self._parameters = journal, stage, parameters
        self._processes = processes

    def records(self) -> list[Checkpointed]:
        """What is committed, in order."""
        return self._journal.of(Checkpointed, self._stage.key)

    def resume(self, optimizer: torch.optim.Optimizer) -> int | None:
        """Take up the last committed state; returns the steps that are done, None if nothing is committed.

        Raises RefusedError if another number of processes began it: their sums are rounded in another order.
        """
        committed = self.records()
        if not committed:
            return None
        last, world = committed[-1], self._processes.count
        if last.world != world:
            raise RefusedError(
                f"{self._stage.title} was begun by {last.world} processes, and now there are {world}",
                f"go on with --processes {last.world}, or start over with --fresh",
            )
        held = NativeFile(self._stage.file(last.file))
        for name, parameter in self._parameters.items():
            _copy(held, f"value.{name}", parameter)
        for name in held.specs:
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                key, _, parameter_name = rest.partition(".")
                parameter, value = self._parameters[parameter_name], _read(held, name)
                # As a fused optimizer makes them: the count of steps beside the parameter, too, and never sharded.
                held_as = value.to(parameter.device) if key == "step" else sharded_as(value, parameter)
                optimizer.state[parameter][key] = held_as
        torch.set_rng_state(_read(held, "random"))
        return last.step

    def commit(
        self,
        step: int,
        optimizer: torch.optim.Optimizer,
        losses: Sequence[float],
        measured: Sequence[tuple[int, float]],
        best: str,
    ) -> None:
        """On return the state after `step` steps is on disk, and those before it are gone."""
        name = f"state-{step:08d}.safetensors"
        self._save(name, self._tensors(optimizer))
        self._processes.on_main(lambda: self._record(step, self._stage.file(name), losses, measured, best))

    def _record(
        self, step: int, path: Path, losses: Sequence[float], measured: Sequence[tuple[int, float]], best: str
    ) -> None:
        self._journal.append(
            Checkpointed(
                stage=self._stage.key,
                step=step,
                file=path.name,
                sha256=sha256_file(path),
                losses=tuple(losses),
                measured=tuple(measured),
                best=best,
                world=self._processes.count,
            )
        )
        self._drop_all_but(path.name, best)

    @staticmethod
    def best_name(step: int) -> str:
        """The file of what has learned after `step` steps, if that is the best."""
        return f"best-{step:08d}.safetensors"

    def save_best(self, name: str) -> None:
        """Write what has learned so far to the file `name`."""
        self._save(name, {parameter_name: parameter.detach() for parameter_name, parameter in self._parameters.items()})

    def take_best(self, name: str) -> None:
        """Set what learns to what `save_best` wrote to the file `name`."""
        self._processes.wait()  # it may be on its way
        held = NativeFile(self._stage.file(name))
        for parameter_name, parameter in self._parameters.items():
            _copy(held, parameter_name, parameter)
        self._processes.wait()  # nobody drops it before

    def drop(self) -> None:
        """Training is over, and what it left is committed."""
        self._drop_all_but()

    def _save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """The main process writes, one tensor at a time; the others give it their parts of each."""
        if self._processes.main:
            save_tensors(self._stage.file(name), tensors, whole)
            return
        for _, tensor in sorted(tensors.items()):
            whole(tensor)

    def _tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        tensors = {"random": torch.get_rng_state()}
        for name, parameter in self._parameters.items():
            tensors[f"value.{name}"] = parameter.detach()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def _drop_all_but(self, *names: str) -> None:
        for pattern in ("state-*.safetensors", "best-*.safetensors"):
            for path in self._stage.folder.glob(pattern):
                if path.name not in names:
                    path.unlink()


class Unsaved(States):
    """The states of a training that a kill costs as a whole: the best is kept in memory, nothing is journalled."""

    def records(self) -> list[Checkpointed]:
        return []

    def commit(self, *_: object, **__: object) -> None:
        pass

    def save_best(self, name: str) -> None:
        self._best = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def take_best(self, name: str) -> None:
        for parameter_name, parameter in self._parameters.items():
            parameter.copy_(self._best[parameter_name])

    def drop(self) -> None:
        self._best = {}


def _read(held: NativeFile, name: str) -> Tensor:
    tensor = held.read(name)
    assert isinstance(tensor, Tensor)  # no QTensor is saved here
    return tensor


@torch.no_grad()
def _copy(held: NativeFile, name: str, parameter: nn.Parameter) -> None:
    parameter.copy_(sharded_as(_read(held, name), parameter))
