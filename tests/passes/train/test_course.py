"""What every pass that trains does: once, and then it is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.sequences import Sequences
from compress.passes.rtn import RTN
from compress.passes.train.course import train
from compress.passes.train.examples import Examples
from compress.passes.train.loop import Group, Objective
from compress.passes.train.options import TrainOptions
from compress.passes.train.student import Student

IDS = torch.randint(0, 320, (6, 12), generator=torch.Generator().manual_seed(4))
FAST = TrainOptions(steps=4, batch=2, held_out=2, train="norms", lr=1e-3)


class Likelihood(Objective):
    """Cross entropy over whole logits."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.model = student.model

    def forward(self, examples: Examples, rows: Tensor) -> Tensor:
        ids = examples.sequences.ids
        logits = self.model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="sum")


def test_a_course_trains_once_and_drops_what_it_needed(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]
) -> None:
    run = begin(tiny_llama, tmp_path / "run")
    stage = Stage((RTN(),), {"x": 1}, run.work, sequences=Sequences(IDS))
    given: list[tuple[int, int]] = []

    def make(student: Student, learned: Examples, held_out: Examples) -> tuple[Objective, Sequence[Group]]:
        given.append((learned.count, held_out.count))
        return Likelihood(student), []

    first = train(run, stage, FAST, make)
    second = train(run, stage, FAST, make)
    assert given == [(4, 2)] and first.manifest == second.manifest
    assert first.manifest["training"][0]["tokens"] == 4 * 2 * 12
    assert not list(stage.folder.glob("state-*")) and not list(stage.folder.glob("best-*"))
    norm = "model.norm.weight"
    before, after = run.source.read(norm), run.model.read(norm)
    assert isinstance(before, Tensor) and isinstance(after, Tensor) and not torch.equal(before, after)
