"""What a run needs on disk meanwhile: planned as it then lies there, and refused where there is no room for it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compress.formats.errors import RefusedError
from compress.passes.core.journal import Committed, Journal
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run
from compress.recipes.workshop import WORK

TEXT: dict[str, Any] = {"samples": 32, "seq_len": 64}
FAST: dict[str, Any] = {**TEXT, "steps": 2, "batch": 2, "held_out": 2, "train": "norms"}
GPTQ: dict[str, Any] = {"group_size": 32}
RTN = {"rtn": GPTQ}
PASSES: dict[str, list[dict[str, Any]]] = {
    "a sweep": [{"calibrate": TEXT}, {"gptq": GPTQ}],
    "two models side by side": [{"calibrate": TEXT}, {"gptq": {**GPTQ, "correct": True}}],
    "the end loss": [{"calibrate": TEXT}, {"gptq": {**GPTQ, "end_loss": True, "end_loss_parts": 4}}],
    "hidden states of a teacher": [RTN, {"distill": FAST}],
    "its likeliest tokens": [RTN, {"distill": {**FAST, "cache": {"top_k": 200}}}],
    "states of what learns": [RTN, {"distill": {**FAST, "train": "all", "cache": "off", "measure_every": 1}}],
    "layer by layer": [RTN, {"distill": {**FAST, "scope": "layer"}}],
    "two models, one after the other": [RTN, {"evaluate": {**TEXT, "data": "builtin"}}],
}
TEMPORARY = ("*.bin", "top-k-*", "tokens-*", "state-*", "best-*")


EXPORT = {"export": {"dialect": "dense", "requantize": True}}


@dataclass(frozen=True)
class Usage:
    free: int


def distilling(model: Path) -> Recipe:
    """Four megabytes of a teacher's answers, more than the artifact."""
    return from_data({"model": str(model), "passes": [RTN, {"distill": {**FAST, "samples": 128}}, EXPORT]})


@pytest.fixture(params=PASSES)
def recipe(request: pytest.FixtureRequest, tiny_llama: Path) -> Recipe:
    return from_data({"model": str(tiny_llama), "passes": [*PASSES[request.param], EXPORT]})


def test_the_disk_that_is_planned_is_what_lies_there(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, seen = Journal.append, list[int]()

    def look(self: Journal, record: Committed) -> None:
        files = {path for kind in TEMPORARY for path in (tmp_path / "out" / WORK).rglob(kind)}
        seen.append(sum(path.stat().st_size for path in files))
        append(self, record)

    monkeypatch.setattr(Journal, "append", look)
    run(recipe, tmp_path / "out")
    assert 0.9 * plan(recipe).disk_bytes <= max(seen) <= 1.05 * plan(recipe).disk_bytes  # files have headers


def test_a_budget_counts_the_journal_what_stages_leave_and_artifacts(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be kept is refused before anything is computed, with the smallest that can."""
    steps = [*PASSES["two models side by side"], {"export": {"dialect": "gptq"}}, {"export": {"dialect": "gguf"}}]
    recipe, append, seen = from_data({"model": str(tiny_llama), "passes": steps}), Journal.append, list[int]()

    def look(self: Journal, record: Committed) -> None:
        append(self, record)
        seen.append(sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()))

    monkeypatch.setattr(Journal, "append", look)
    needed = plan(recipe).folder_bytes
    with pytest.raises(RefusedError, match=rf"about {-(-needed // 2**20)} MiB on disk, and {needed >> 20} MiB are"):
        run(recipe, tmp_path / "out", max_disk=needed - 1)
    assert not seen and not (tmp_path / "out").exists()
    run(recipe, tmp_path / "out", max_disk=needed)
    assert 0.85 * needed <= max(seen) <= needed


def test_no_room_is_refused_before_anything_is_computed(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = distilling(tiny_llama)
    needed = plan(recipe).folder_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed - 1))
    monkeypatch.setattr(Journal, "append", lambda *_: pytest.fail("begun"))
    with pytest.raises(RefusedError, match=f"needs {needed:,} bytes, and its disk has {needed - 1:,} free") as caught:
        run(recipe, tmp_path / "out")
    assert caught.value.hint and not (tmp_path / "out" / WORK).exists()


def test_what_lies_there_is_not_needed_again(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = distilling(tiny_llama)
    half = plan(recipe).folder_bytes // 2 + 1
    lies = tmp_path / "out" / WORK / "stage-x" / "boundary"
    lies.parent.mkdir(parents=True)
    lies.write_bytes(bytes(half))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(half))
    assert run(recipe, tmp_path / "out").artifacts
