"""What ran otherwise than asked, counted for the report of a run: kernels that did not take a case, too little memory.

Whoever falls back says so with `count`; where nobody counts that costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_counted: ContextVar[Counter[str] | None] = ContextVar("_counted", default=None)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Within, fallbacks are counted: how often, by what was said of them."""
    found = Counter[str]()
    token = _counted.set(found)
    try:
        yield found
    finally:
        _counted.reset(token)


def count(what: str) -> None:
    """Something fell back: `what`, in words for the user."""
    counted = _counted.get()
    if counted is not None:
        counted[what] += 1


def counted() -> dict[str, int]:
    """What was counted so far; nothing where nobody counts."""
    return dict(_counted.get() or {})
