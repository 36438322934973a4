"""A run on the tiny llama, and a teacher for it that is larger and of another family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.sequences import Sequences
from compress.passes.teach.cached import Asked
from compress.passes.teach.teacher import Teacher, open_teacher


@pytest.fixture
def teacher(tiny_llama: Path, tmp_path: Path, make_model: Callable[..., Path]) -> Teacher:
    make_model(tmp_path / "teacher", "qwen3", layers=3, seed=1)
    return open_teacher("teacher", open_checkpoint(tiny_llama), tmp_path, torch.device("cpu"))


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> Run:
    return begin(tiny_llama, tmp_path / "work")


@pytest.fixture
def stage(run: Run) -> Stage:
    return Stage((), {}, run.work)


@pytest.fixture
def asked() -> Asked:
    """Padded sequences, positions of answers among them, in one none; held-out rows have numbers below 0."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 320, (37, 12), generator=generator)
    lengths = torch.randint(4, 13, (37, 1), generator=generator)
    mask = torch.arange(12) < lengths
    scored = mask[:, 1:] & (torch.rand(37, 11, generator=generator) < 0.7)
    scored[5] = False
    return Asked(Sequences(ids, mask), scored, torch.cat([torch.arange(30), -1 - torch.arange(7)]))
