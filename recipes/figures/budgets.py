"""Budgets of a run: what it would take beyond them is refused beforehand, with the smallest that would do."""

from __future__ import annotations

import math
import os
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from compress.formats.errors import RefusedError

_MIB = 1 << 20
_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_DATA)


def memory_here(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may have: the machine's, or what a cgroup (at `root`) or an rlimit leaves."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [soft for kind in _LIMITS if (soft := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY]
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not this kind of cgroups, or no limit
            limits.append(int(file.read_text()))
    return min(limits)


def peak_here(status: Path = Path("/proc/self/status")) -> int:
    """The most bytes of memory that this process has had.

    From Linux's `status` of it: the figure of getrusage holds what the process had that started this one.
    """
    if status.is_file() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def least_memory(taken: Callable[[int], int]) -> int:
    """The smallest budget that is kept: `taken` says what a run takes within one, more where more is allowed."""
    allowed = 0
    while (needed := taken(allowed)) > allowed:
        allowed = needed
    return allowed


def refuse_memory(least: int, allowed: int, several: bool) -> None:
    """Raise RefusedError for a run that cannot do with less than `least`; `several` processes that train share it."""
    fewer = "start fewer processes, say shard: true" if several else "use fewer samples or a shorter seq_len"
    raise RefusedError(
        f"the run needs about {_mib(least)} of memory, and {allowed // _MIB:,} MiB are allowed",
        f"{fewer}, or allow that",
    )


def refuse_disk(needed: int, allowed: int) -> None:
    """Raise RefusedError for a run whose folder takes more than `allowed` bytes."""
    if needed > allowed:
        raise RefusedError(
            f"the run needs about {_mib(needed)} on disk, and {allowed // _MIB:,} MiB are allowed",
            "use fewer samples or exports, or allow that",
        )


def _mib(nbytes: int) -> str:
    """As `--max-ram` and `--max-disk` take it: rounded up."""
    return f"{math.ceil(nbytes / _MIB):,} MiB"
