"""Amounts of bytes: what is read."""

from __future__ import annotations

import pytest

from compress.formats.errors import UsageError
from compress.formats.sizes import parse_bytes

SIZES = {
    "8GiB": 8 << 30, "8G": 8 << 30, "8g": 8 << 30, "1.5 GiB": 3 << 29,
    "500MB": 5 * 10**8, "500 mb": 5 * 10**8,
    "1kB": 1000, "1KiB": 1024, "4096": 4096, "4096B": 4096, "2TiB": 2 << 40, "2TB": 2 * 10**12,
}  # fmt: skip


@pytest.mark.parametrize("text", SIZES)
def test_sizes_are_read(text: str) -> None:
    assert parse_bytes(text) == SIZES[text]


@pytest.mark.parametrize("text", ["", "x", "-1G", "0", "0GiB", "1PiB", "1 G B", "1e3", "G", "1,5G", "1..5G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)
