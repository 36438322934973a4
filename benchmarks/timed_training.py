"""The command line of ours with every step of its training timed: python timed_training.py STEPS ARGUMENTS…

STEPS is written as a peer's is (peers/laps.py). What a teacher is asked before is a part of every step.
"""

from __future__ import annotations

import os
import sys
from functools import wraps
from pathlib import Path
from typing import Any

from peers.laps import Laps

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command does, before torch is there

from compress.cli.app import main
from compress.passes.teach import cached
from compress.passes.train.loop import Training


def timed(owner: Any, name: str) -> Laps:
    """From now on every call of this function is a lap."""
    laps, function = Laps(), getattr(owner, name)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with laps.lap():
            return function(*args, **kwargs)

    setattr(owner, name, call)
    return laps


def train(path: Path, *arguments: str) -> int:
    """Carry out the command; its exit code."""
    steps, asked, ended = timed(Training, "_learn"), timed(cached, "ask"), Training.execute

    def execute(training: Training) -> Any:
        curve = ended(training)
        steps.write(path, curve.losses, asked)
        return curve

    Training.execute = execute  # type: ignore[method-assign, assignment]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1]), *sys.argv[2:]))
