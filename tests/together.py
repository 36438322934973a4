"""Two processes that carry out a run together, as a launcher starts them; what they import is imported once for all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from forkserver import forkserver
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from compress.passes.core.processes import Processes, joined
from compress.passes.train.loop import Training
from compress.recipes.recipe import load
from compress.recipes.run import run


def together(work: Callable[..., None], *arguments: object) -> None:
    """`work(processes, *arguments)` in both. Raises torch's ProcessException if one fails or ends before its time."""
    forkserver()  # which start_processes takes
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    start_processes(_one, (store.port, work, arguments), nprocs=2, start_method="forkserver")


def _one(index: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """What torchrun says to its processes, and one thread for each."""
    place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
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
