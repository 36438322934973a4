"""Sequences through a model as a part of a stage: transformers is the judge, and a killed walk goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.passes.core.carry import Boundary, carry
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.walk import Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import dense

Begin = Callable[..., Run]


def carried(run: Run, rows: Sequences, name: str = "one") -> Walk:
    stage = Stage((), {}, run.work)
    return carry(run, stage, name, "carry", rows, run.skeleton, dense(run.model))


def test_the_last_boundary_is_before_the_final_norm(
    tiny_llama: Path, tmp_path: Path, begin: Begin, rows: Sequences
) -> None:
    walk = carried(begin(tiny_llama, tmp_path / "work"), rows)
    project, _ = walk.skeleton.back(walk.streams[0].weights)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    with torch.no_grad():
        found = project(walk.streams[0].hidden.read(2, 0, rows.count))
        torch.testing.assert_close(found, model(rows.ids).logits, rtol=1e-5, atol=1e-5)


def test_a_killed_walk_goes_on_where_it_was(
    tiny_llama: Path, tmp_path: Path, begin: Begin, rows: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = carried(begin(tiny_llama, tmp_path / "whole"), rows)
    run = begin(tiny_llama, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(run.reporter, "advance", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            carried(run, rows)
    again = begin(tiny_llama, tmp_path / "killed")
    assert [record.boundary for record in again.journal.of(Boundary)] == [1]
    walk = carried(again, rows)
    assert [record.boundary for record in again.journal.of(Boundary)] == [1, 2]
    read = [each.streams[0].hidden.read(2, 0, rows.count) for each in (walk, whole)]
    assert torch.equal(*read)


@pytest.mark.parametrize("keep", [False, True])
def test_boundaries_are_kept_if_that_is_wanted(
    tiny_llama: Path, tmp_path: Path, begin: Begin, rows: Sequences, keep: bool
) -> None:
    run = begin(tiny_llama, tmp_path / "work")
    walk = carry(run, Stage((), {}, run.work), "one", "carry", rows, run.skeleton, dense(run.model), keep=keep)
    assert len(list(walk.streams[0].hidden.directory.iterdir())) == (3 if keep else 1)


def test_walks_of_other_names_are_others(tiny_llama: Path, tmp_path: Path, begin: Begin, rows: Sequences) -> None:
    run = begin(tiny_llama, tmp_path / "work")
    first, second = carried(run, rows), carried(run, rows, "two")
    assert first.streams[0].hidden.directory != second.streams[0].hidden.directory
    assert [(record.walk, record.boundary) for record in run.journal.of(Boundary)] == [
        ("one", 1), ("one", 2), ("two", 1), ("two", 2),
    ]  # fmt: skip
