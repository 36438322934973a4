"""What checkpoints can do: scores of tasks, models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from compress.cli.terminal.tables import new_table
from compress.cli.terminal.units import file_size

if TYPE_CHECKING:
    from compress.recipes.tasks.harness import Score, TaskResult, TaskScore


def tasks(rows: Sequence[TaskResult]) -> list[RenderableType]:
    """A row for every task, metric and model; the parts of a group are left to --json."""
    table = new_table("task", "metric", "model", "size", "score", "±", "questions", "shots", right=range(3, 8))
    for name, first in rows[0].tasks.items():
        if first.within:
            continue
        for metric in first.metrics:
            for row in rows:
                table.add_row(name, *_cells(row, row.tasks[name], metric))
    return [table, "± is one standard error"]


def _cells(row: TaskResult, found: TaskScore, metric: str) -> list[str]:
    score = found.metrics[metric]
    named = metric if score.higher_is_better else f"{metric} (less is better)"
    return [named, row.path, file_size(row.bytes), *_figures(score), f"{found.samples:,}", str(found.shots)]


def _figures(score: Score) -> list[str]:
    return [f"{score.value:.4f}", "–" if score.stderr is None else f"{score.stderr:.4f}"]
