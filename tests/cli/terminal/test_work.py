"""The time that work takes, from the pace so far."""

from __future__ import annotations

import pytest

from compress.cli.terminal.work import Work


def test_time_left_counts_only_what_this_process_did() -> None:
    work = Work("gptq", total=30, unit="layer", resumed=20, started=100.0)
    assert work.left(150.0) is None
    work.steps = 2
    assert work.left(110.0) == pytest.approx(8 * 5.0)
    work.steps = 10
    assert work.left(150.0) == 0
