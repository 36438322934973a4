"""What `-q` does to libraries: nothing that they say on standard error is heard, from Python or from C."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

_STDERR = 2


@contextmanager
def silenced() -> Iterator[None]:
    """Send standard error nowhere. Exceptions pass: who catches them outside can say what went wrong.

    The file descriptor is redirected, so log handlers that libraries make meanwhile are heard again afterwards.
    """
    sys.stderr.flush()
    stream = open(_STDERR, "w", buffering=1, closefd=False)  # noqa: SIM115 - such handlers keep it
    kept = os.dup(_STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        with redirect_stderr(stream):
            yield
    finally:
        stream.flush()
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(nowhere)
