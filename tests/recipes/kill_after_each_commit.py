"""kill_after_each_commit.py DIR [STEP]: a recipe (JSON on standard input) into DIR/whole, undisturbed; then into
DIR/killed-N for every STEP-th N, killed by SIGKILL right after the N-th journal line and run again.

All but the first are forks of this process, which has imported by then whatever a run imports.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch

from compress.passes.core.journal import Committed, Journal
from compress.recipes.recipe import Recipe, build
from compress.recipes.run import run
from compress.recipes.yaml import Document, parse


def main(folder: Path, step: int = 1) -> None:
    text = sys.stdin.read()
    torch.set_num_threads(1)  # an OpenMP pool does not survive a fork

    def work(output: Path, kill_at: int | None = None) -> None:
        if kill_at:
            kill_after(kill_at)
        run(load(text), output)

    os.fsync = lambda descriptor: None  # who is killed leaves all that he has written
    work(folder / "whole")
    for commit in count(1, step):
        output = folder / f"killed-{commit:02d}"
        status = forked(partial(work, output, commit))
        if status == 0:
            break
        assert status == signal.SIGKILL, status
        assert forked(partial(work, output)) == 0


def load(text: str) -> Recipe:
    return build(Document("test", parse(text, "test").data, {}))


def kill_after(last: int) -> None:
    """Make the `last`-th commit the last thing that this process does."""
    append, seen = Journal.append, 0

    def counted(self: Journal, record: Committed) -> None:
        nonlocal seen
        append(self, record)
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = counted  # type: ignore[method-assign]


def forked(work: Callable[[], object]) -> int:
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
