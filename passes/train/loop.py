"""The training loop: steps of AdamW on whatever loss a pass gives, the best held-out step kept, resumable anywhere.

It stands on accelerate, which makes one loop of one process and of many: each takes its share of a step's sequences,
and their gradients are summed. Where no device holds the model, all of them hold it together (`shard.py`). Nothing but
the step decides which sequences come and how fast the model learns, so a run that was killed goes on with the same
curve.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.formats.errors import CompressError
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.train.examples import Examples
from compress.passes.train.options import TrainOptions
from compress.passes.train.order import MicroBatches, held_out_rows, rows_of
from compress.passes.train.shard import own_part, shard_root, whole
from compress.passes.train.state import States

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_COMMIT_SECONDS = 60.0
"""About what a kill costs."""
_CHEAP_SECONDS, _COMMIT_SHARE = 5.0, 0.1
"""A commit that takes longer than the first may take this part of the time."""
_EPSILON = 1e-15
"""Gradients of codes are as small as 1e-9; a usual 1e-8 would hold them back, and these alone."""
_BEYOND = 3.0
"""A held-out loss so many times that of the beginning will not come back."""


@dataclass(frozen=True)
class Group:
    """Parameters by name that learn at one largest rate. Of those in `pruned` zeros stay zeros."""

    parameters: Mapping[str, nn.Parameter]
    rate: float
    decay: float = 0.0
    pruned: frozenset[str] = frozenset()


@dataclass
class Curve:
    """Loss per token: of each step, and of the held-out sequences as (steps done, loss)."""

    losses: list[float] = field(default_factory=list)
    measured: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best(self) -> tuple[int, float]:
        """The steps done where the held-out loss was least, and that loss."""
        return min(self.measured, key=lambda point: point[1])


class Objective(nn.Module, ABC):
    """What a pass minimises. It holds the model that learns as a submodule."""

    @abstractmethod
    def forward(self, examples: Examples, rows: Tensor) -> Tensor:
        """The sum [] of the losses of all scored tokens of `examples`; `rows` [n] are their places in the data."""


class Training:
    """The training of one stage, from where its journal says that it stands."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        options: TrainOptions,
        objective: Objective,
        groups: Sequence[Group],
        learned: Examples,
        held_out: Examples,
        states: type[States] = States,
        mesh: DeviceMesh | None = None,
    ) -> None:
        """`mesh`: the processes that parameters are sharded over; None: each of them has all."""
        self.run, self.stage, self.options = run, stage, options
        self.learned, self.held_out = learned, held_out
        self.accelerator = _accelerator(run.device)
        if mesh is not None:
            sharded = shard_root(objective, mesh, [group.parameters for group in groups])
            groups = [replace(group, parameters=parameters) for group, parameters in zip(groups, sharded)]
        self.rates = [group.rate for group in groups]
        self._pruned = [group.parameters[name] for group in groups for name in sorted(group.pruned)]
        parameters = {name: parameter for group in groups for name, parameter in group.parameters.items()}
        optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters.values()), "weight_decay": group.decay} for group in groups],
            betas=(0.9, 0.95),
            eps=_EPSILON,
            fused=True,  # one pass over memory in place of ten
        )
        # Prepared for evaluation it is not wrapped: to have one's gradients summed is for many with a model each.
        self._wrapped = run.processes.count > 1 and mesh is None
        self.objective: nn.Module = self.accelerator.prepare_model(objective, False, evaluation_mode=not self._wrapped)
        self.optimizer, self.parameters = optimizer, parameters
        self.states = states(run.journal, stage, parameters, run.processes)
        self.curve, self._best = Curve(), ""
        at_once = options.at_once(learned.sequences.length)
        self._micro_batches = MicroBatches(run, stage.title, at_once, optimizer.zero_grad)

    def execute(self) -> Curve:
        """Train to the end and leave the parameters as they were at their best.

        Raises CompressError if the loss is no number any more, or has run away; what is committed stays.
        """
        torch.manual_seed(self.run.seed)
        done = self._take_up()
        self.run.reporter.start(self.stage.title, self.options.steps, "step", done=done or 0)
        if done is None:
            self._measure(0)
            self._commit(0)
        for step in range(done or 0, self.options.steps):
            self._learn(step)
            self._after(step + 1)
        self.run.reporter.finish()
        self.states.take_best(self._best)
        return self.curve

    def _take_up(self) -> int | None:
        """What is committed becomes the state; returns the steps done, None if nothing is."""
        done = self.states.resume(self.optimizer)
        for record in self.states.records():
            self.curve.losses += record.losses
            self.curve.measured += record.measured
            self._best = record.best
        self._told = len(self.curve.losses), len(self.curve.measured)
        self._committed_at, self._commit_took = time.monotonic(), 0.0
        self.run.processes.wait()  # nobody drops a state that another one reads
        return done

    def _learn(self, step: int) -> None:
        """One step of the optimizer."""
        rows = rows_of(step, seed=self.run.seed, count=self.learned.count, batch=self.options.batch)
        loss = self._micro_batches.fitting(self._gradients, rows)
        for parameter in self._pruned:
            keep_zeros(parameter)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * self.options.rate(step)
        norm = float(whole(self.accelerator.clip_grad_norm_(self.parameters.values(), self.options.clip)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._give_up(f"the loss of step {step + 1} is {loss:g}, its gradient {norm:g}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.curve.losses.append(loss)
        self.run.reporter.advance(f"step {step + 1}", loss=loss)

    def _gradients(self, rows: Tensor) -> float:
        """Those of the loss per token of `rows`, over all processes; returns that loss."""
        total = int(self.learned.pick(rows).scored().sum())
        parts, loss = self._micro_batches.of(rows), 0.0
        for number, part in enumerate(parts, start=1):
            waits = self._wrapped and number < len(parts)
            with self.accelerator.no_sync(self.objective) if waits else nullcontext():
                summed = self._loss(self.learned, part) / max(1, total)
                # Times their number: what the processes find is averaged.
                self.accelerator.backward(summed * self.run.processes.count)
            loss += float(summed.detach())
        return self.run.processes.sum(loss)

    def _after(self, done: int) -> None:
        """What is due after so many steps: a look at the held-out sequences, a commit."""
        last = done == self.options.steps
        if measured := last or done % self.options.interval == 0:
            self._measure(done)
        if last or self._due(measured):
            self._commit(done)

    def _due(self, measured: bool) -> bool:
        """Whether the time is right for a commit, which all take part in: the main process says so for all."""
        return self.run.processes.sum(self.run.processes.main and self._is_time(measured)) > 0

    def _is_time(self, measured: bool) -> bool:
        """By this process's clock: what was `measured` is kept at once where that costs little."""
        since = time.monotonic() - self._committed_at
        if self._commit_took < _CHEAP_SECONDS:
            return measured or since > _COMMIT_SECONDS
        return since > max(_COMMIT_SECONDS, self._commit_took / _COMMIT_SHARE)

    def _measure(self, done: int) -> None:
        """The loss per token of the held-out sequences; where it is the least so far, what has learned is kept."""
        self.run.reporter.tell("measuring on what is held out")
        loss = self._micro_batches.fitting(self._held_out_loss, torch.arange(self.held_out.count))
        first = self.curve.measured[0][1] if self.curve.measured else loss
        if not math.isfinite(loss) or loss > _BEYOND * first + 1:
            self._give_up(f"after {done} steps the loss on held-out sequences is {loss:g}, and it was {first:g}")
        self.curve.measured.append((done, loss))
        if self.curve.best[0] == done:
            self._best = self.states.best_name(done)
            self.states.save_best(self._best)

    @torch.no_grad()
    def _held_out_loss(self, rows: Tensor) -> float:
        """The loss per token of the held-out `rows`, over all processes."""
        parts = [self._loss(self.held_out, part, held_out_rows) for part in self._micro_batches.of(rows)]
        total = int(self.held_out.pick(rows).scored().sum())
        return self.run.processes.sum(sum(float(part) for part in parts)) / max(1, total)

    def _commit(self, done: int) -> None:
        begun = time.monotonic()
        losses, measured = self.curve.losses[self._told[0] :], self.curve.measured[self._told[1] :]
        self.states.commit(done, self.optimizer, losses, measured, self._best)
        self._told = len(self.curve.losses), len(self.curve.measured)
        self._committed_at = time.monotonic()
        self._commit_took = self._committed_at - begun

    def _loss(self, examples: Examples, part: Tensor, numbered: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The losses of `part` of the examples, summed; of none, 0 in place of the first one's."""
        some = part if len(part) else torch.zeros(1, dtype=torch.int64)
        loss: Tensor = self.objective(examples.pick(some), numbered(some) if numbered else some)
        return loss if len(part) else loss * 0

    def _give_up(self, reason: str) -> None:
        raise CompressError(
            f"{self.stage.title} diverges: {reason}",
            "lower its rates (`lr`, `lr_scales`, `lr_codes`, `lr_lora`) or raise `warmup`; what came before is kept",
        )


@torch.no_grad()
def keep_zeros(parameter: nn.Parameter) -> None:
    """Take the gradient from where `parameter` is 0. Without one AdamW has no moments there, and 0 decays to 0.

    Weights are the mask themselves: nothing is kept beside them, or has to be taken up after a kill.
    """
    if parameter.grad is not None:
        own_part(parameter.grad).masked_fill_(own_part(parameter) == 0, 0.0)


def _accelerator(device: torch.device) -> Any:
    """Its settings are those of the recipe, whatever the launcher's may be."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A step may leave parameters without a gradient, as those of experts that no token reached. Buffers stay as read.
    several = DistributedDataParallelKwargs(
        find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[several])
