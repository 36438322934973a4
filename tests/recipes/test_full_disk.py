"""A disk that fails in the middle of a run: a typed error, nothing under a final name, and the run goes on later."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from compress.formats.errors import StorageError
from compress.recipes.recipe import Recipe, build
from compress.recipes.run import run
from compress.recipes.yaml import Document

CASES = 8


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path) -> Recipe:
    passes = [
        {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}},
        {"gptq": {"group_size": 32}},
        {"export": {"dialect": "gptq"}},
        {"export": {"dialect": "gguf"}},
    ]
    return build(Document("test", {"model": str(tiny_llama), "passes": passes}, {}))


class FailingDisk:
    """Counts the calls that change the disk, and fails one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None = None) -> None:
        self.calls, self.at = 0, at
        for name in ("pwrite", "fsync", "replace", "posix_fallocate", "rename"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments)

        return wrapped


@pytest.fixture
def total(recipe: Recipe, tmp_path: Path) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch)
        run(recipe, tmp_path / "whole")
    yield disk.calls


def artifacts(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.glob("g*/*"))}


def test_a_disk_that_fills_up_at_any_moment(recipe: Recipe, tmp_path: Path, total: int) -> None:
    whole = artifacts(tmp_path / "whole")
    assert total > CASES
    for at in (1, *Random(0).sample(range(2, total), CASES - 2), total):
        output = tmp_path / f"failed-{at}"
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, at)
            with pytest.raises(StorageError) as caught:
                run(recipe, output)
        assert caught.value.hint
        standing = artifacts(output)
        assert {name: whole[name] for name in standing} == standing
        run(recipe, output)
        assert artifacts(output) == whole
