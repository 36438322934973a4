"""The energies of inputs: gathered once, and gone on with where a run was cut off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.imatrix import Imatrix
from compress.passes.sweep.energies import Gathered, gathered_energies


def test_a_run_that_was_cut_off_goes_on(
    tiny_llama: Path,
    tmp_path: Path,
    begin: Callable[..., Run],
    killed_at: Callable[[int], AbstractContextManager[None]],
) -> None:
    def gather(folder: str) -> tuple[Run, dict[str, torch.Tensor]]:
        run = begin(tiny_llama, tmp_path / folder)
        found = gathered_energies(run, Stage((Imatrix(),), {}, run.work))
        return run, {name: energy.sums for name, energy in found.items()}

    _, whole = gather("whole")
    with killed_at(2):
        gather("cut")
    run, rest = gather("cut")
    assert len(run.journal.of(Gathered)) == 2
    assert whole.keys() == rest.keys() and all(torch.equal(sums, rest[name]) for name, sums in whole.items())
