"""A run that is killed by SIGKILL right after each of its commits, and goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from forkserver import forkserver

from compress.passes.core.journal import Committed, Journal
from compress.recipes.recipe import from_data
from compress.recipes.run import run


def killed_after_each_commit(recipe: Mapping[str, Any], folder: Path, step: int = 1) -> None:
    """The recipe into `folder`/whole, undisturbed; then into `folder`/killed-N for every `step`-th N.

    Those are killed right after the N-th journal line, and run again. All are forks of a process of their own.
    """
    process = forkserver().Process(target=_kill_all, args=(recipe, folder, step))
    process.start()
    process.join()
    assert process.exitcode == 0


def _kill_all(recipe: Mapping[str, Any], folder: Path, step: int) -> None:
    torch.set_num_threads(1)  # an OpenMP pool does not survive a fork

    def work(output: Path, kill_at: int | None = None) -> None:
        if kill_at:
            _kill_after(kill_at)
        run(from_data(recipe), output)

    os.fsync = lambda descriptor: None  # who is killed leaves all that he has written
    work(folder / "whole")
    for commit in count(1, step):
        output = folder / f"killed-{commit:02d}"
        status = _forked(partial(work, output, commit))
        if status == 0:
            break
        assert status == signal.SIGKILL, status
        assert _forked(partial(work, output)) == 0


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
