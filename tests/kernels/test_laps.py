"""Laps count their own time only; without a profile nothing is kept."""

from __future__ import annotations

import pytest
import torch

from compress.kernels import laps as module
from compress.kernels.laps import copy_rate, lap, laps, product_rate, profiled


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def test_a_lap_is_less_what_is_done_within_it(clock):
    with profiled() as kept, kept.stage("gptq"):
        for _ in range(2):
            with lap("forward", flops=6):
                clock(1)
                with lap("read", nbytes=10) as read:
                    clock(4)
                    read.nbytes += 5
                clock(2)
        clock(8)
    found = kept.stages["gptq"]
    assert vars(found["forward"]) == {"calls": 2, "seconds": 6, "flops": 12, "nbytes": 0}
    assert vars(found["read"]) == {"calls": 2, "seconds": 8, "flops": 0, "nbytes": 30}
    assert kept.total == {"gptq": 22}


def test_an_error_ends_a_lap_too(clock):
    with profiled() as kept:
        with pytest.raises(ValueError, match="x"), lap("solve"):
            clock(3)
            raise ValueError("x")
        with lap("solve"):
            clock(1)
    assert kept.stages[""]["solve"].seconds == 4


def test_without_a_profile_nothing_is_kept():
    with profiled(False) as kept, lap("forward") as one:
        one.nbytes += 1
        assert kept is None and laps() is None


def test_what_the_machine_reaches_is_measured():
    flops, nbytes = (rate(torch.device("cpu")) for rate in (product_rate, copy_rate))
    assert 1e8 < flops < 1e15 and 1e7 < nbytes < 1e13
