"""A command in several processes at once: how they are started, and how they speak with one voice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from compress.cli.commands.shared import device_here
from compress.cli.terminal.signals import Interrupted
from compress.formats.errors import CompressError, UsageError
from compress.passes.core.processes import Processes, claim_voice, joined, started_together

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0
"""So long may a process take to end in order."""
_PATIENCE_SECONDS = 1.0
"""An error may be that another process is gone: that one, or who started it, is first to say so."""
_ENDS_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""

Worker = subprocess.Popen[bytes]


def launch(arguments: Sequence[str], count: int, given: bytes | None) -> int:
    """Do the command `arguments` in `count` processes of this machine at once; returns its exit code.

    `given` is what each of them reads on standard input. Raises CompressError if one of them is killed; whatever
    happens, none is left behind.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    workers: list[Worker] = []
    try:
        for index in range(count):
            workers.append(_start(arguments, _environment(index, count, store.port), given))
        return _outcome(workers, store)
    except Interrupted:
        claim_voice(store)
        raise
    finally:
        _end(workers)


def _environment(index: int, count: int, port: int) -> dict[str, str]:
    """What torchrun says to its processes."""
    threads = max(1, (os.cpu_count() or 1) // count)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here before any of them is
    }


def _start(arguments: Sequence[str], environment: dict[str, str], given: bytes | None) -> Worker:
    """One of the processes. The terminal's signals do not reach it: who started it passes them on, once."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "compress.cli", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
        process_group=0,
    )
    if worker.stdin is not None and given is not None:
        worker.stdin.write(given)
        worker.stdin.close()
    return worker


def _outcome(workers: Sequence[Worker], store: Store) -> int:
    """The exit code of the first that fails, or 0 when all are through."""
    while True:
        codes = [worker.poll() for worker in workers]
        failed = next((number for number, code in enumerate(codes) if code), None)
        if failed is not None:
            return _told(failed, codes[failed] or 0, len(workers), store)
        if None not in codes:
            return 0
        time.sleep(_POLL_SECONDS)


def _told(number: int, code: int, count: int, store: Store) -> int:
    if code < 0 and claim_voice(store):
        raise CompressError(
            f"process {number + 1} of {count} was ended by {signal.Signals(-code).name}",
            "is there memory for so many? The same command goes on where it stopped",
        )
    return max(1, code)


def _end(workers: Sequence[Worker]) -> None:
    """None of them runs when this returns."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in workers:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


@contextmanager
def one_voice(device: str, asked: int | None) -> Iterator[Processes]:
    """The processes that do this command together. The first that fails says so; others then end without a word.

    Raises UsageError if their number is not the one that was `asked` for.
    """
    if asked is not None and asked != (count := started_together()):
        raise UsageError(f"--processes {asked}: a launcher has started {count}", "leave one of both out")
    if asked is not None and asked > 1:
        _end_with_parent()
    with joined(device.startswith("cuda")) as processes:
        try:
            device_here(processes.device(device))
            yield processes
        except typer.Exit:
            raise
        except BaseException as error:
            if _speaks(processes, error):
                raise
            raise typer.Exit(getattr(error, "exit_code", 1)) from error


def _speaks(processes: Processes, error: BaseException) -> bool:
    """Whether this process is to tell its error."""
    try:
        if processes.count > 1 and not isinstance(error, CompressError | Interrupted):
            time.sleep(_PATIENCE_SECONDS)
        return processes.speaks()
    except (Interrupted, RuntimeError):  # it is being ended; or nobody is there any more who could listen
        return False


def _end_with_parent() -> None:
    """Whatever ends the process that started this one ends this one, too."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_ENDS_WITH_PARENT, int(signal.SIGKILL))
