"""Scores of tasks as a table: models side by side, the parts of a group left out."""

from __future__ import annotations

import pytest

from compress.cli.terminal.tables import show
from compress.cli.views.tasks import tasks
from compress.recipes.tasks.harness import Score, TaskResult, TaskScore


def result(path: str, acc: float) -> TaskResult:
    group = TaskScore(samples=1000, shots=0, metrics={"acc": Score(value=acc, stderr=None)})
    part = TaskScore(samples=4, shots=5, metrics={"acc": Score(value=acc, stderr=0.1)}, within="mmlu")
    less = TaskScore(samples=4, shots=5, metrics={"ppl": Score(value=3, stderr=0.25, higher_is_better=False)})
    return TaskResult(path=path, bytes=2000, tasks={"mmlu": group, "mmlu_anatomy": part, "lambada": less})


def test_models_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    show(*tasks([result("a", 0.5), result("b", 0.25)]))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" mmlu") or "ppl" in line]
    assert lines[:2] == [
        ["mmlu", "acc", "a", "2.00", "kB", "0.5000", "–", "1,000", "0"],
        ["mmlu", "acc", "b", "2.00", "kB", "0.2500", "–", "1,000", "0"],
    ]
    assert lines[2] == ["lambada", "ppl", "(less", "is", "better)", "a", "2.00", "kB", "3.0000", "0.2500", "4", "5"]
    assert len(lines) == 4
