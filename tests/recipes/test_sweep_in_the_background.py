"""What a sweep does beside its computing, and what it does again: nothing is lost, and the bytes are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.formats.errors import StorageError
from compress.passes.core.journal import Journal
from compress.passes.core.linear import LinearPass
from compress.passes.model.skeleton import Skeleton
from compress.passes.sweep import units
from compress.passes.sweep.units import Unit
from compress.recipes.page.of_run import leave_page
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

LAYERS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Recipe:
    model = make_model(tmp_path_factory.mktemp("model") / "llama", "llama", layers=LAYERS)
    passes = [
        {"calibrate": {"data": "builtin", "samples": 6, "seq_len": 32}},
        {"gptq": {"group_size": 32, "correct": True}},
        {"export": {"dialect": "gptq"}},
    ]
    return from_data({"model": str(model), "passes": passes})


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The artifact's bytes."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert not run(recipe, output).fallbacks
    return weights(output)


def weights(output: Path) -> bytes:
    return (output / "gptq" / "model.safetensors").read_bytes()


def committed(output: Path) -> list[Unit]:
    return Journal(output / ".compress" / "journal.jsonl").of(Unit)


def test_an_error_of_the_write_surfaces_and_what_was_committed_stays(
    recipe: Recipe, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second unit cannot be written while the third begins: no unit after it may be committed."""
    save = units.save_tensors

    def full(path: Path, tensors: Any) -> None:
        if path.name == "unit-0001.safetensors":
            raise StorageError("the disk is full", "free space")
        save(path, tensors)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="the disk is full"):
        patch.setattr(units, "save_tensors", full)
        run(recipe, tmp_path / "out")
    assert len(committed(tmp_path / "out")) == 1
    rewritten = solved(monkeypatch)
    run(recipe, tmp_path / "out")
    assert len(committed(tmp_path / "out")) == LAYERS and len(rewritten) == 4 * (LAYERS - 1)
    assert weights(tmp_path / "out") == undisturbed


def test_an_error_of_the_next_layer_leaves_the_one_before_committed(
    recipe: Recipe, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That layer was read while the one before was computed."""
    fill = Skeleton.layer

    def torn(skeleton: Skeleton, index: int, weights: Any) -> nn.Module:
        if index == 1:
            raise OSError("torn")
        return fill(skeleton, index, weights)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="torn"):
        patch.setattr(Skeleton, "layer", torn)
        run(recipe, tmp_path / "out")
    assert len(committed(tmp_path / "out")) == 1
    run(recipe, tmp_path / "out")
    assert weights(tmp_path / "out") == undisturbed


def test_where_memory_runs_out_batches_shrink_and_bytes_stay(
    recipe: Recipe, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is for two sequences; what was rewritten of a layer by then is done again, and once only in the file."""
    call = Skeleton.call

    def small(skeleton: Skeleton, index: int, sequences: Any, watch: Any = None) -> Any:
        if sequences.count > 2 and index == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(skeleton, index, sequences, watch)

    monkeypatch.setattr(Skeleton, "call", small)
    report = run(recipe, tmp_path / "out")
    assert weights(tmp_path / "out") == undisturbed
    said = [f"memory ran out, and each batch was run in {parts} parts" for parts in (2, 4)]
    assert report.fallbacks == dict.fromkeys(said, 1)
    assert report.notes[-2:] == [f"{each} (1 ×)" for each in said]
    assert json.loads((tmp_path / "out" / "compress.json").read_text())["report"]["fallbacks"] == report.fallbacks
    assert said[0] in leave_page(recipe, report, tmp_path / "out").read_text()


def test_memory_for_not_even_one_sequence_is_an_error(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Skeleton, "call", none)
    with pytest.raises(torch.OutOfMemoryError):
        run(recipe, tmp_path / "out")


def solved(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for all siblings that are rewritten from now on."""
    seen, siblings = list[None](), LinearPass.siblings
    monkeypatch.setattr(LinearPass, "siblings", lambda *given: (seen.append(None), siblings(*given))[1])
    return seen
