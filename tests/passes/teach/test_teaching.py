"""A lesson from its options: who is asked, and what learns beside the student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.sequences import Sequences
from compress.passes.rtn import RTN
from compress.passes.teach.lesson import LessonOptions
from compress.passes.teach.teaching import lesson, teacher_of
from compress.passes.train.examples import Examples
from compress.passes.train.options import TrainOptions
from compress.passes.train.order import held_out_rows
from compress.passes.train.student import Student

IDS = torch.randint(0, 320, (6, 12), generator=torch.Generator().manual_seed(4))
FAST = TrainOptions(steps=4, batch=2, held_out=2, precision="fp32", train="norms", lr=1e-3)


def test_cached_answers_are_those_of_a_teacher_at_hand(
    tiny_llama: Path, tmp_path: Path, swept: Callable[..., Run]
) -> None:
    run = swept(tiny_llama, tmp_path / "run", [RTN(bits=3, group_size=32)])
    learned, held_out = Examples(Sequences(IDS)).split(2, 0)
    found = []
    for cache in ("hidden", "off"):
        stage = Stage((RTN(),), {"cache": cache}, run.work)
        options = LessonOptions(cache=cache)  # type: ignore[arg-type]
        objective, more = lesson(run, stage, options, FAST, Student(run, FAST), learned, held_out)
        assert not more
        with torch.no_grad():
            rows = torch.tensor([1, 3])
            found.append(float(objective(learned.pick(rows), rows)))
            found.append(float(objective(held_out.pick(torch.tensor([1])), held_out_rows(torch.tensor([1])))))
    assert found[:2] == pytest.approx(found[2:], rel=1e-5) and found[0] > 0


def test_projections_learn_where_widths_differ(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], make_model: Callable[..., Path]
) -> None:
    wide = make_model(tmp_path / "wide", "qwen3")
    run = begin(tiny_llama, tmp_path / "run")
    options = LessonOptions(loss="feature", teacher=str(wide), layers={2: 1})
    assert teacher_of(run, options).checkpoint.path == wide
    learned, held_out = Examples(Sequences(IDS)).split(2, 0)
    stage = Stage((RTN(),), {"x": 1}, run.work)
    _, more = lesson(run, stage, options, FAST, Student(run, FAST), learned, held_out)
    assert not more  # both are 64 wide
