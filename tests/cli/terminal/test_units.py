"""Quantities: how they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.cli.terminal.units import counted, duration, file_size, memory_size
from compress.formats.sizes import parse_bytes


@given(st.integers(1, 10**15))
def test_a_size_reads_back_within_its_digits(nbytes: int) -> None:
    for shown in (file_size(nbytes), memory_size(nbytes)):
        assert parse_bytes(shown) == pytest.approx(nbytes, rel=0.006)


def test_quantities_are_shown() -> None:
    assert [file_size(n) for n in (0, 999, 1000, 98_362_432, 10**12)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "98.4 MB",
        "1.00 TB",
    ]
    assert [memory_size(n) for n in (1023, 1 << 30, 10 << 40)] == ["1023 B", "1.00 GiB", "10.0 TiB"]
    times = [duration(s) for s in (0.04, 8.25, 9.96, 59.4, 60, 185, 3599.6, 7800)]
    assert times == ["0.0 s", "8.2 s", "10 s", "59 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 10 min"]


def test_things_are_counted() -> None:
    assert [counted(*found) for found in ((1, "file"), (0, "layer"), (4, "pass"))] == ["1 file", "0 layers", "4 passes"]
