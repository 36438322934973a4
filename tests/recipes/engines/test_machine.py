"""What a processor can do: read when asked, from Linux or from torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compress.recipes.engines import machine
from compress.recipes.engines.machine import Machine, cores, this_machine


def test_a_flag_is_asked_of_x86_processors_only() -> None:
    assert Machine("x86_64", frozenset({"avx2"})).lacks("avx512f")
    assert not Machine("x86_64", frozenset({"avx512f"})).lacks("avx512f")
    assert not Machine("aarch64", frozenset()).lacks("avx512f")


def test_flags_are_those_of_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nvmx flags\t: vnmi\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: spectre_v1\n\n" * 2)
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    assert this_machine().flags == {"fpu", "avx2", "avx512f"}


@pytest.mark.parametrize(("word", "lacking"), [("DEFAULT", True), ("AVX2", True), ("AVX512", False)])
def test_torch_is_asked_where_linux_is_not_there(
    word: str, lacking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: word)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert this_machine().lacks("avx512f") is lacking


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert cores() == 3
