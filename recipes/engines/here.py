"""Can an engine compute an artifact on this machine? Asked before it is started: some die in mid-answer if not."""

from __future__ import annotations

from pathlib import Path

from compress.formats.base import Checkpoint
from compress.recipes.engines.ask import build_of
from compress.recipes.engines.machine import Machine, this_machine
from compress.recipes.engines.verdicts import builds_of, subject_of, verdict


def unable_here(engine: str, python: Path, artifact: Checkpoint, machine: Machine | None = None) -> str:
    """Why `engine`, as it is installed for `python`, cannot compute `artifact` on `machine`; empty if it can.

    The machine is this one by default. Raises CompressError if the engine does not say which build it is.
    """
    machine, subject = machine or this_machine(), subject_of(artifact)
    path = str(artifact.path)
    found = {build: verdict(build, path, subject, machine).not_here for build in builds_of(engine)}
    # Starting the interpreter takes its time: only where the answer matters.
    return found.get(build_of(engine, python), "") if any(found.values()) else ""
