"""An interpreter made up here, whose engines write at a given pace: what `compress bench` starts with `--python`.

An engine has its n-th token after n times 10 ms, or 20 ms if the artifact's name holds `slow`, and half of that with a
draft; none of it takes any time. What it is asked to write stands in `asked` beside it, a line each: the artifact, how
many prompts, how many tokens. As the variables of its environment say

    MISSING=engine    that engine is not installed
    DIES=name         with that artifact it dies when it is to write for the third time
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def install(folder: Path) -> Path:
    """Make it a program in `folder`; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} "$0" "$@"\n')
    (folder / "python").chmod(0o755)
    return folder / "python"


def asked(python: Path) -> list[str]:
    """What it was asked to write."""
    return (python.parent / "asked").read_text().splitlines()


def reply(request: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    """As launch.py does; `loaded` is what was asked for last."""
    if "writer" in request:
        loaded.update(request, written=0)
        return {"versions": {"made-up": "1"}}
    loaded["written"] += 1
    name = Path(loaded["path"]).name
    if name == os.environ.get("DIES") and loaded["written"] == 3:
        sys.exit("Traceback (most recent call last):\nValueError: out of luck")
    with (Path(sys.argv[1]).parent / "asked").open("a") as file:
        print(name, len(request["prompts"]), request["tokens"], file=file)
    step = (0.02 if "slow" in name else 0.01) / (2 if loaded["writer"]["draft"] else 1)
    stream = [(step * number, number) for number in range(1, request["tokens"] + 1)]
    return {"arrivals": [stream] * len(request["prompts"]), "peak_bytes": 1 << 20}


if __name__ == "__main__":
    if os.environ.get("MISSING") == sys.argv[-1]:
        sys.exit("Traceback (most recent call last):\nModuleNotFoundError: No module named 'it'")
    found: dict[str, Any] = {}
    for line in sys.stdin:
        print(json.dumps(reply(json.loads(line), found)), flush=True)
