"""Processes that carry out a run together, as a launcher starts them; what they import is imported once for all."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from forkserver import forkserver
from pytest import MonkeyPatch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from compress.formats.errors import InputError
from compress.passes.core.linear import LinearPass
from compress.passes.core.processes import Processes, joined
from compress.passes.forward.cost import flow
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.walk import Walk
from compress.passes.model.skeleton import Skeleton
from compress.passes.train.loop import Training
from compress.recipes.recipe import load
from compress.recipes.run import run

SEQUENCES = 10
"""For calibration, where a sweep is shared."""


def together(work: Callable[..., None], *arguments: object, count: int = 2) -> None:
    """`work(processes, *arguments)` in each. Raises torch's ProcessException if one fails or ends before its time."""
    forkserver()  # which start_processes takes
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    start_processes(_one, (count, store.port, work, arguments), nprocs=count, start_method="forkserver")


def _one(index: int, count: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """What torchrun says to its processes, and one thread for each."""
    place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "TORCHELASTIC_USE_AGENT_STORE": "True"}  # the store is here before them
    torch.set_num_threads(1)
    with joined(gpus=False) as processes:
        work(processes, *arguments)


def train_sharded(processes: Processes, outputs: Mapping[Path, Path], killed_at: int | None = None) -> None:
    """Run the recipes in `outputs` into the folders there. Before a step parameters are sharded, after it moments are.

    `killed_at`: both processes are gone before that step, counted from 0.
    """
    learn = Training._learn

    def checked(training: Training, step: int) -> None:
        if step == killed_at:
            os._exit(1)
        assert all(isinstance(each, DTensor) for each in training.objective.parameters())
        learn(training, step)
        assert all(isinstance(moments["exp_avg"], DTensor) for moments in training.optimizer.state.values())

    Training._learn = checked  # type: ignore[method-assign]
    for recipe, output in outputs.items():
        run(load(str(recipe)), output, processes=processes)


def sweep_together(processes: Processes, outputs: Mapping[Path, Path], tokens: int) -> None:
    """Run the recipes in `outputs` into the folders there, in batches of so many tokens: each process runs its own."""
    flow._LEAST_TOKENS = tokens
    fly, flown = Walk._fly, set[int]()

    def noted(self: Walk, index: int, modules: Any, batch: tuple[int, int]) -> Any:
        if self.share.count > 1 and self.sequences.count == SEQUENCES:
            flown.add(batch[0])
        return fly(self, index, modules, batch)

    Walk._fly = noted  # type: ignore[method-assign]
    for recipe, output in outputs.items():
        run(load(str(recipe)), output, processes=processes)
    assert 0 < len(flown) < SEQUENCES


PLACES: Mapping[str, tuple[type, str]] = {
    "as a layer runs": (Skeleton, "call"),
    "as it is rewritten": (LinearPass, "siblings"),
    "as its outputs are written": (HiddenStates, "place"),
}


def run_short(processes: Processes, recipe: Path, outputs: Mapping[str, Path], tokens: int) -> None:
    """For each place a run in which memory runs out there, in one process and later in the other.

    Each writes into the output, in a file of its own, what it fell back to.
    """
    flow._LEAST_TOKENS = tokens
    for place, output in outputs.items():
        owner, name = PLACES[place]
        with MonkeyPatch.context() as patch:
            patch.setattr(owner, name, _short(getattr(owner, name), at=(7, 2)[processes.index]))
            report = run(load(str(recipe)), output, processes=processes)
        (output / f"process {processes.index}").write_text("\n".join(report.fallbacks))


def _short(work: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`work`, that has no memory when it is called the `at`th time."""
    calls = itertools.count(1)

    def tried(*given: Any, **named: Any) -> Any:
        if next(calls) == at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*given, **named)

    return tried


def fail_together(processes: Processes, recipe: Path, output: Path, tokens: int) -> None:
    """The second process fails at its first batch of the second layer. Each writes beside `output` how it ended, when.

    None of them is ended by whoever started it.
    """
    flow._LEAST_TOKENS = tokens
    fly = Walk._fly

    def torn(self: Walk, index: int, modules: Any, batch: tuple[int, int]) -> Any:
        if index == 1 and not processes.main:
            raise InputError("torn")
        return fly(self, index, modules, batch)

    Walk._fly = torn  # type: ignore[method-assign]
    try:
        run(load(str(recipe)), output, processes=processes)
    except Exception as error:  # noqa: BLE001 - whatever it is is written down
        output.with_name(f"{processes.index}").write_text(f"{type(error).__name__} {time.monotonic()}")
        if processes.main:
            os._exit(0)  # a group of which some are gone is not left in order
