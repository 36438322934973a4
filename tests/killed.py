"""A run that is killed by SIGKILL right after its commits, one process after the other, and goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from forkserver import forkserver

from compress.passes.core.journal import Committed, Journal
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run


def killed_after_each_commit(recipe: Mapping[str, Any], folder: Path, step: int = 1) -> int:
    """The recipe into `folder`/whole, undisturbed, and into `folder`/killed; how many processes the latter took down.

    Each of those goes on where the one before it was killed, and is killed right after its `step`-th journal line; the
    last one comes to the end. All are forks of a process of their own.
    """
    with ProcessPoolExecutor(1, mp_context=forkserver()) as pool:
        return pool.submit(_kill_all, recipe, folder, step).result()


def _kill_all(recipe: Mapping[str, Any], folder: Path, step: int) -> int:
    torch.set_num_threads(1)  # an OpenMP pool does not survive a fork
    os.fsync = lambda descriptor: None  # who is killed leaves all that he has written
    wanted, kills = from_data(recipe), 0
    run(wanted, folder / "whole")
    while status := _forked(partial(_go_on, wanted, folder / "killed", step)):
        assert status == signal.SIGKILL and kills < 50, status
        kills += 1
    return kills


def _go_on(recipe: Recipe, output: Path, step: int) -> None:
    _kill_after(step)
    run(recipe, output)


def _kill_after(last: int) -> None:
    """Make the `last`-th commit the last thing that this process does."""
    append, seen = Journal.append, 0

    def counted(self: Journal, record: Committed) -> None:
        nonlocal seen
        append(self, record)
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = counted  # type: ignore[method-assign]


def _forked(work: Callable[[], object]) -> int:
    """Exit status or signal of `work` in a child process."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - a forked child must not go on as its parent
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
