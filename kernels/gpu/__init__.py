"""How does a GPU compute it? Triton, one file an op, named after it; `kernels/op.py` finds them."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path


def lacking() -> str:
    """What this machine lacks to run Triton kernels; empty if nothing. Triton compiles a stub in C on first use."""
    if find_spec("triton") is None:
        return "the package triton"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc or clang)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's C headers (python3-dev)"
    return ""
