"""Every error that `compress` raises on purpose.

    CompressError                 exit 1: the work failed
    ├── UsageError                exit 2: a bad command line, recipe or option
    │   └── InputError            exit 2: a file that is missing, truncated, hostile or not what it says
    ├── RefusedError              exit 3: stopped before compute; it would not fit or not load
    ├── GateError                 exit 4: done, but a gate of the recipe was missed
    └── StorageError              exit 1: a disk that is full, read-only or failing

A message says what is wrong and where (a tensor, a file, a YAML line); `hint` says what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import ClassVar


class CompressError(Exception):
    """The base of the tree: `str(error)` is the message, `error.hint` the next step.

    `error.at` is which option of a pass it speaks of, as a recipe spells it: ("data", 1) is the second part of a blend.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.at: tuple[str | int, ...] = ()


class UsageError(CompressError):
    """The request is wrong: a command line, a recipe key, an option's value."""

    exit_code = 2


class InputError(UsageError):
    """An input file is missing, truncated, malformed, or holds what it must not (NaN, a path, a pickle)."""


class RefusedError(CompressError):
    """The request is well-formed but cannot succeed; said before any weight is read."""

    exit_code = 3


class GateError(CompressError):
    """The artifact exists, is marked, and misses a gate of the recipe."""

    exit_code = 4


class StorageError(CompressError):
    """Writing failed: nothing stands under the final name, and the run can be resumed."""


@contextmanager
def within(*option: str | int) -> Iterator[None]:
    """Whatever is refused within speaks of this option, or of what stands in it."""
    try:
        yield
    except CompressError as error:
        error.at = (*option, *error.at)
        raise


def suggest(word: str, valid: Iterable[str]) -> str:
    """`; did you mean 'group_size'?`, or the valid words if none is near: the end of a message about `word`."""
    words = sorted(valid)
    near = get_close_matches(word, words, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; valid: {', '.join(words)}"
