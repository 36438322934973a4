"""The memory that a long run occupies, as the system sees it."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Parameters of mallopt(3), from glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let the heap serve and keep blocks of up to 32 MiB, where the C library can (glibc: mallopt(3)).

    By default every block of a weight's size comes from the system and goes back to it, and its pages are
    zeroed anew: five sixths of the time of decoding a layer went there. The heap learns these very limits once a
    block of 32 MiB was freed; so said, it knows them from the start. For a process of our own, before its work.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_MMAP_THRESHOLD, 32 << 20)
        option(_TRIM_THRESHOLD, 64 << 20)


def return_freed_memory() -> None:
    """Hand the heap's free pages back to the system, where the C library can (glibc: malloc_trim(3)).

    Called between layers: a heap that keeps them fragments layer by layer, and a run on 32 layers then peaks
    at 1.6 times the memory of one on 8.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
