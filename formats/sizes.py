"""Amounts of bytes as people write them."""

from __future__ import annotations

import re

from compress.formats.errors import UsageError

_SIZE = re.compile(r"\s*(?P<number>\d+(\.\d+)?)\s*(?P<prefix>[kmgt]?)(?P<binary>i?)b?\s*", re.IGNORECASE)
_PREFIXES = ("", "k", "m", "g", "t")


def parse_bytes(text: str) -> int:
    """`8GiB`, `8G` (binary), `500MB` (decimal) or plain bytes. Raises UsageError."""
    match = _SIZE.fullmatch(text)
    if match is None or float(match["number"]) <= 0:
        raise UsageError(f"{text!r} is not a size", "write it as 8GiB or 500MB")
    decimal = not match["binary"] and text.strip().lower().endswith("b")
    base = 1000 if decimal else 1024
    return int(float(match["number"]) * base ** _PREFIXES.index(match["prefix"].lower()))
