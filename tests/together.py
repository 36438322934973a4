"""Processes that carry out a run together, as a launcher starts them; what they import is imported once for all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from forkserver import forkserver
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from compress.formats.errors import InputError
from compress.passes.core.processes import Processes, joined
from compress.passes.forward import cost
from compress.passes.forward.walk import Walk
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
    cost._LEAST_TOKENS = tokens
    fly, flown = Walk._fly, set[int]()

    def noted(self: Walk, index: int, modules: Any, batch: tuple[int, int]) -> Any:
        if self.share.count > 1 and self.sequences.count == SEQUENCES:
            flown.add(batch[0])
        return fly(self, index, modules, batch)

    Walk._fly = noted  # type: ignore[method-assign]
    for recipe, output in outputs.items():
        run(load(str(recipe)), output, processes=processes)
    assert 0 < len(flown) < SEQUENCES


def fail_together(processes: Processes, recipe: Path, output: Path, tokens: int) -> None:
    """The second process fails at its first batch of the second layer. Each writes beside `output` how it ended, when.

    None of them is ended by whoever started it.
    """
    cost._LEAST_TOKENS = tokens
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
