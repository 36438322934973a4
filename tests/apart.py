"""What a test asks of a real GPU, in a process of its own: beside a pretended one autograd takes that for the GPU."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from compress.recipes.recipe import build
from compress.recipes.run import RunReport, run
from compress.recipes.yaml import Document


def report(recipe: dict[str, Any], folder: Path, device: str) -> RunReport:
    """Of the run of a recipe into `folder`."""
    return run(build(Document("here", recipe, {})), folder, device=device)


def report_apart(recipe: dict[str, Any], folder: Path, device: str) -> RunReport:
    """The same, in a new process that has imported nothing of this one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(report, recipe, folder, device).result()
