"""What was learned, as units of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.rtn import RTN
from compress.passes.train.commit import Learned, Trained, commit, take_over
from compress.passes.train.loop import Curve
from compress.passes.train.options import TrainOptions
from compress.passes.train.student import Student

NORM = "model.norm.weight"


def test_it_is_written_once_and_read_by_whoever_comes(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]
) -> None:
    run = begin(tiny_llama, tmp_path / "run")
    stage = Stage((RTN(),), {"x": 1}, run.work)
    student = Student(run, TrainOptions(train="norms"))
    with torch.no_grad():
        student.dense[NORM].add_(1.0)
    commit(run, stage, student, Curve([0.5, 0.25], [(0, 0.5), (2, 0.4)]), 64)
    units = run.journal.of(Learned)
    assert {name for unit in units for name in unit.tensors} == set(student.dense)

    again = begin(tiny_llama, tmp_path / "run")
    left = take_over(again, stage, TrainOptions())
    before, after = again.source.read(NORM), again.model.read(NORM)
    assert isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)
    assert torch.equal(after, before + 1.0) and after.dtype == before.dtype
    assert left.authors[NORM] == "rtn" and set(left.authors) == set(student.dense)
    (training,) = left.manifest["training"]
    assert training == {
        "pass": "rtn", "losses": [0.5, 0.25], "measured": [[0, 0.5], [2, 0.4]], "best": 2, "tokens": 64,
        "processes": 1,
    }  # fmt: skip


def test_what_is_there_is_not_written_again(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> None:
    run = begin(tiny_llama, tmp_path / "run")
    stage = Stage((RTN(),), {"x": 1}, run.work)
    student = Student(run, TrainOptions(train="norms"))
    curve = Curve([0.5], [(0, 0.5)])
    commit(run, stage, student, curve, 64)
    times = {path.name: path.stat().st_mtime_ns for path in stage.folder.iterdir()}
    commit(run, stage, student, curve, 64)
    assert {path.name: path.stat().st_mtime_ns for path in stage.folder.iterdir()} == times
    assert len(run.journal.of(Trained)) == 2 and len(run.journal.of(Learned)) == len(times)
