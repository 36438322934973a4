"""What a processor cannot compute is told before an engine is started, and is no fault of the artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import CompressError
from compress.recipes.engines.here import unable_here
from compress.recipes.engines.machine import Machine
from compress.recipes.engines.verdicts import subject_of, verdict
from compress.recipes.recipe import from_data
from compress.recipes.run import run

AVX2 = Machine("x86_64", frozenset({"sse2", "avx2"}))
AVX512 = Machine("x86_64", frozenset({"sse2", "avx2", "avx512f"}))
ARM = Machine("aarch64", frozenset({"neon"}))
Make = Callable[[dict[str, Any], str], Path]


@pytest.fixture
def make(tiny_llama: Path, tmp_path: Path) -> Make:
    """make(step, dialect): an artifact of the tiny model, its rows multiples of 32."""

    def build(step: dict[str, Any], dialect: str) -> Path:
        passes = [*([step] if step else []), {"export": {"dialect": dialect}}]
        report = run(from_data({"model": str(tiny_llama), "passes": passes}), tmp_path / "out")
        return Path(report.artifacts[0].path)

    return build


RTN = {"rtn": {"bits": 4, "group_size": 32}}


def python_of(build: str, folder: Path) -> Path:
    """An interpreter of an engine that says which build it is, and dies when it is asked for more."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n[ "$(cat)" = "{{}}" ] || {{ echo it died >&2; exit 1; }}\necho \'{build}\'\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("dialect", ["gptq", "awq", "compressed-tensors"])
def test_int4_is_not_computed_without_avx512(dialect: str, make: Make) -> None:
    subject = subject_of(open_checkpoint(make(RTN, dialect)))
    lacking, having, other = (verdict("vllm-cpu", "x", subject, each) for each in (AVX2, AVX512, ARM))
    assert lacking.loads and having.loads and other.loads
    assert lacking.not_here == "not on this processor: int4 weights are computed on x86 processors with AVX-512 only"
    assert having.not_here == other.not_here == ""
    assert "AVX-512 only" in having.note and verdict("vllm-cpu", "x", subject).not_here == ""
    assert verdict("vllm", "x", subject, AVX2).not_here == ""


@pytest.mark.parametrize(("step", "dialect"), [({}, "dense"), ({"int8": {}}, "compressed-tensors")])
def test_what_any_x86_processor_computes(step: dict[str, Any], dialect: str, make: Make) -> None:
    subject = subject_of(open_checkpoint(make(step, dialect)))
    found = verdict("vllm-cpu", "x", subject, AVX2)
    assert found.not_here == "" and "AVX-512 only" not in found.note


def test_the_build_decides(make: Make, tmp_path: Path) -> None:
    """One script serves vLLM's builds for CPUs and for GPUs: only the former has to do with the processor."""
    artifact = open_checkpoint(make(RTN, "gptq"))
    on_cpu = python_of('{"build": "vllm-cpu"}', tmp_path)
    assert "AVX-512" in unable_here("vllm", on_cpu, artifact, AVX2)
    assert unable_here("vllm", on_cpu, artifact, AVX512) == ""
    assert unable_here("transformers", on_cpu, artifact, AVX2) == ""
    assert unable_here("vllm", python_of('{"build": "vllm"}', tmp_path), artifact, AVX2) == ""


def test_an_engine_is_not_started_where_its_build_does_not_matter(make: Make, tmp_path: Path) -> None:
    artifact = open_checkpoint(make(RTN, "gptq"))
    assert unable_here("vllm", tmp_path / "none", artifact, AVX512) == ""
    with pytest.raises(CompressError, match="does not start"):
        unable_here("vllm", tmp_path / "none", artifact, AVX2)
