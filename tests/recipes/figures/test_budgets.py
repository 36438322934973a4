"""How much memory there is, and what is said where it is too little."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from compress.formats.errors import RefusedError
from compress.recipes.figures.budgets import least_memory, memory_here, peak_here, refuse_disk, refuse_memory

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_cgroup_and_an_rlimit_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_here(tmp_path) == MACHINE
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_here(tmp_path) == MACHINE
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory_here(tmp_path) == 1_000_000
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000000\n")
    assert memory_here(tmp_path) == 2_000_000
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (3000 if kind == resource.RLIMIT_DATA else -1, -1))
    assert memory_here(tmp_path) == 3000


def test_the_least_is_what_is_taken_where_no_more_is_allowed() -> None:
    assert least_memory(lambda allowed: 100) == 100
    assert least_memory(lambda allowed: 100 if allowed < 100 else 150 if allowed < 150 else 120) == 150


def test_what_is_said() -> None:
    with pytest.raises(RefusedError, match=r"about 3 MiB of memory, and 1 MiB are allowed") as caught:
        refuse_memory((2 << 20) + 1, 1 << 20, several=False)
    assert "fewer samples" in caught.value.hint
    with pytest.raises(RefusedError) as caught:
        refuse_memory(2 << 20, 1 << 20, several=True)
    assert "fewer processes" in caught.value.hint
    refuse_disk(5, 5)
    with pytest.raises(RefusedError, match="1 MiB on disk, and 0 MiB are allowed"):
        refuse_disk(6, 5)


def test_the_peak_is_this_process_s_own_not_that_of_who_started_it() -> None:
    own = "from compress.recipes.figures.budgets import peak_here; print(peak_here())"
    starting = f"""
import subprocess, sys
held = b"x" * (400 << 20)
print(subprocess.run([sys.executable, "-c", {own!r}], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", starting], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 400 << 20


def test_the_peak_grows_and_is_known_where_linux_is_not(tmp_path: Path) -> None:
    before = peak_here()
    held = bytearray(os.urandom(1)) * (64 << 20)
    assert peak_here() >= max(before, len(held))
    assert peak_here(tmp_path / "none") >= len(held)
