"""A clock that the test turns."""

from __future__ import annotations

import pytest


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """clock() → 100 at first; `clock.now` sets it."""
    return Clock()
