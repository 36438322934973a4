"""The memory that a long run occupies, as the system sees it."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3
_LARGE = 8 << 20


def return_large_blocks() -> None:
    """Make glibc hand blocks of 8 MiB and more back to the system as soon as they are freed.

    By itself it moves that limit up as a program runs (mallopt(3)); the heap then fragments layer by layer,
    and the peak of a run on 32 layers was 1.6 times that of 8. Other C libraries have no such call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
