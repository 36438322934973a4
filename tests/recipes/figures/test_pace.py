"""The pace of this machine: five numbers that turn what is to be done into seconds."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.effort import Effort
from compress.recipes.figures.pace import Pace, pace


def test_seconds_are_those_of_each_sort_together() -> None:
    here = Pace(100, 10, 1, 1000, lambda: 500)
    assert here.seconds(Effort(200, 30, 4, 5000, 3000)) == 2 + 3 + 4 + 5 + 6
    unasked = Pace(100, 10, 1, 1000, lambda: pytest.fail("measured for nothing"))
    assert unasked.seconds(Effort(flops=50)) == 0.5


def test_a_machine_has_a_pace_and_is_left_as_it_was() -> None:
    """Any machine multiplies a million times a second, and makes a hundred calls in it."""
    threads = torch.get_num_threads()
    found = pace.__wrapped__()
    assert torch.get_num_threads() == threads
    assert (
        found.flops > 1e6 and found.elements > 1e6 and found.calls > 1e2 and found.half > 1e5 and found.rounded() > 1e6
    )
    assert found.flops > found.elements > found.calls


def test_the_best_of_many_tries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try takes a second, but one in the midst of them half as long."""
    ticks = iter([tick for at in range(12) for tick in (10 * at, 10 * at + (0.5 if at == 5 else 1))] * 5)
    monkeypatch.setattr("compress.recipes.figures.pace.time.thread_time", lambda: next(ticks))
    assert pace.__wrapped__().calls == pytest.approx(0.7 * 200 / 0.5)
