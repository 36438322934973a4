"""What a machine's processor can do, as far as facts about engines ask. Looked up when asked, never at import."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "AMD64", "i686")
_BY_CAPABILITY = {"AVX2": ("avx2",), "AVX512": ("avx2", "avx512f")}
"""Flags by torch's word for them, where Linux does not list them."""


@dataclass(frozen=True)
class Machine:
    """A processor: its architecture as `uname -m` says it, and what it can do by the names in /proc/cpuinfo."""

    architecture: str
    flags: frozenset[str]

    def lacks(self, flag: str) -> bool:
        """Whether this is an x86 processor without `flag`; engines have other ways on other architectures."""
        return self.architecture in _X86 and flag not in self.flags


def this_machine() -> Machine:
    """The machine that this runs on."""
    found = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE) if _CPUINFO.is_file() else None
    flags = found[1].split() if found else _BY_CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), ())
    return Machine(platform.machine(), frozenset(flags))


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
