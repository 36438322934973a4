"""Fallbacks are counted where somebody counts, by what was said of them."""

from __future__ import annotations

from compress.kernels.fallbacks import count, counted, counting


def test_they_are_counted_within_only() -> None:
    count("before")
    assert counted() == {}
    with counting() as found:
        for what in ("slow", "small", "slow"):
            count(what)
        assert counted() == found == {"slow": 2, "small": 1}
        with counting():
            assert counted() == {}
    count("after")
    assert counted() == {} and found == {"slow": 2, "small": 1}
