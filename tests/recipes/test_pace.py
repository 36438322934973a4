"""The pace of this machine: three numbers that turn what is to be done into seconds."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.effort import Effort
from compress.recipes.pace import Pace, pace


def test_seconds_are_those_of_each_sort_together() -> None:
    assert Pace(100, 10, 1).seconds(Effort(200, 30, 4)) == 2 + 3 + 4
    assert Pace(100, 10, 1).seconds(Effort()) == 0


def test_a_machine_has_a_pace_and_is_left_as_it_was() -> None:
    """Any machine multiplies a million times a second, and makes a hundred calls in it."""
    threads = torch.get_num_threads()
    found = pace()
    assert torch.get_num_threads() == threads
    assert found.flops > 1e6 and found.elements > 1e6 and found.calls > 1e2
    assert found.flops > found.elements > found.calls


def test_the_best_of_many_tries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try takes a second, but one in the midst of them half as long."""
    ticks = iter([tick for at in range(12) for tick in (10 * at, 10 * at + (0.5 if at == 5 else 1))] * 3)
    monkeypatch.setattr("compress.recipes.pace.time.perf_counter", lambda: next(ticks))
    assert pace().calls == pytest.approx(0.7 * 200 / 0.5)
