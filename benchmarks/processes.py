"""Child processes: what they take, and what they answer. Imports nothing large.

Linux counts into a child's peak what its parent had resident when it forked: so nothing here, nor in
fixed_work.py, may import torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Failed(Exception):
    """A child that did not end well."""


def measured(command: Sequence[str], log: Path) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a whole process; what it prints goes to `log`. Raises Failed.

    It stands in the log's folder, where libraries leave files of their own.
    """
    with log.open("w") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=log.parent)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status != 0:
        raise Failed(f"status {process.returncode}, see {log}: {_last_line(log)}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def answer(command: Sequence[str]) -> Any:
    """The JSON that a process prints. Raises Failed."""
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:6])} … ended with status {done.returncode}")
    return json.loads(done.stdout)


def compress(*arguments: str) -> list[str]:
    """The command line of ours."""
    return [sys.executable, "-m", "compress.cli", *arguments]


def versions(python: str, packages: Sequence[str]) -> str:
    """`name version, …` of those packages that an interpreter has."""
    script = (
        "import json, importlib.metadata as m, sys\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps([f'{p} {have[p]}' for p in sys.argv[1:] if p in have]))"
    )
    return ", ".join(answer([python, "-c", script, *packages]))


def commit() -> str:
    """The last commit that changed the package, with + where the working tree differs from it."""
    here = Path(__file__).parent.parent
    rooms = ["cli", "recipes", "passes", "formats", "kernels"]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments, "--", *rooms], cwd=here, stdout=subprocess.PIPE, text=True).stdout

    return git("log", "-1", "--format=%h").strip() + ("+" if git("status", "--porcelain").strip() else "")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
