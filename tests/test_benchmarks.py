"""What the benchmarks reach into is there: they are run by hand, long after what they name was renamed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import stopwatch
from device_layer import PLACES
from stopwatch import Stopwatch


def test_every_function_that_is_timed_is_found_timed_and_put_back() -> None:
    before = [getattr(owner, name) for _, owner, name in PLACES]
    with Stopwatch(torch.device("cpu")).watching(PLACES):
        assert all(getattr(owner, name) != old for (_, owner, name), old in zip(PLACES, before))
    assert [getattr(owner, name) for _, owner, name in PLACES] == before


def test_a_function_is_charged_with_what_it_does_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])

    class Work:
        @staticmethod
        def inner() -> None:
            now[0] += 3

        def outer(self) -> None:
            self.inner()
            now[0] += 1
            self.inner()

    watch = Stopwatch(torch.device("cpu"))
    with watch.watching([("outer", Work, "outer"), ("inner", Work, "inner")]):
        Work().outer()
        Work.inner()
    assert watch.calls == {"outer": 1, "inner": 3}
    assert watch.seconds == {"outer": 1, "inner": 9}
    assert watch.rows(20)[-1] == "| everything else | 1 | 10.00 | 50 % |"
