"""`compress eval`, as its users meet it; what it measures is judged in tests/recipes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from compress.cli.app import main
from compress.cli.commands.evaluate import evaluate
from compress.recipes.tasks.harness import Score, TaskResult, TaskResults, TaskScore


def test_tasks_are_measured_instead_of_text(
    failure: Callable[[], dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval itself is asked in tests/recipes/tasks."""
    score = TaskScore(samples=8, shots=2, metrics={"acc": Score(value=0.75, stderr=None)})
    asked: list[Any] = []

    def measure(paths: list[str], tasks: list[str], **options: Any) -> TaskResults:
        asked.extend([paths, tasks, options["limit"], options["shots"]])
        return TaskResults(
            results=[TaskResult(path=path, bytes=9, tasks={"facts": score}) for path in paths], versions={}
        )

    monkeypatch.setattr("compress.recipes.tasks.harness.measure", measure)
    arguments = ["eval", "b", "--reference", "a", "--tasks", "facts,mine.jsonl", "--tasks", "gsm8k", "--shots", "2"]
    assert main([*arguments, "--json"]) == 0
    assert asked == [["a", "b"], ["facts", "mine.jsonl", "gsm8k"], None, 2]
    assert [row["path"] for row in json.loads(capsys.readouterr().out)["results"]] == ["a", "b"]
    assert main(arguments) == 0
    assert "0.7500" in capsys.readouterr().out
    for option, value in ("--html", "x.html"), ("--windows", "10"), ("--seq-len", "1024"):  # the defaults, too
        assert main([*arguments, option, value, "--json"]) == 2
        assert f"--tasks measures something else than {option}" in failure()["message"]
    assert main(["eval", "b", "--limit", "4", "--json"]) == 2
    assert "of tasks" in failure()["message"]
    assert evaluate.__doc__ and "--tasks" in evaluate.__doc__
