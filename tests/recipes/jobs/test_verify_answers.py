"""`verify` compares answers with the recorded ones: ours, and an engine's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from compress.formats.errors import RefusedError, UsageError
from compress.passes.artifact.fingerprint import Fingerprint, disagreements, largest_difference
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
