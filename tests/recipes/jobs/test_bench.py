"""Timing, with engines made up here whose pace is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_model
from made_up_writer import asked, install

from compress.formats.errors import InputError, RefusedError
from compress.recipes.jobs.bench import Load, bench, cores, timed_in

LOAD = Load(prompt_tokens=16, tokens=11, concurrency=(1, 2), rounds=3, threads=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model, and one that engines are slow with."""
    folder = tmp_path_factory.mktemp("models")
    return [str(make_model(folder / name, "llama", layers=1)) for name in ("quick", "slow")]


def test_rounds_are_taken_in_turn_and_ratios_are_to_the_first(models: list[str], tmp_path: Path) -> None:
    python = install(tmp_path)
    found = bench(models, LOAD, python=python)
    there = ["quick 1 11", "slow 1 11", "quick 2 11", "slow 2 11"]
    assert asked(python) == ["quick 2 8", "slow 2 8", *there, *reversed(there), *there]
    rows = {(Path(row.path).name, row.concurrency): row for row in found.timed}
    assert rows["quick", 1].pace.decode == pytest.approx(100) and rows["slow", 2].pace.decode == pytest.approx(100)
    assert {key: row.ratio for key, row in rows.items()} == {
        ("quick", 1): 1, ("quick", 2): 1, ("slow", 1): pytest.approx(0.5), ("slow", 2): pytest.approx(0.5),
    }  # fmt: skip
    assert rows["slow", 1].engine == "transformers" and rows["slow", 1].versions == {"made-up": "1"}
    assert found.untimed == [] and (found.rounds, found.threads, found.tokens) == (3, 1, 11)


def test_a_draft_is_timed_beside_the_model_alone(models: list[str], tmp_path: Path) -> None:
    quick, slow = models
    found = bench([slow], LOAD, python=install(tmp_path), draft=quick)
    alone, drafted = (row for row in found.timed if row.concurrency == 1)
    assert (alone.draft, drafted.draft) == (None, quick)
    assert drafted.ratio == pytest.approx(2)


def test_what_dies_is_told_and_the_rest_is_timed(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES", "quick")
    found = bench(models, LOAD, python=install(tmp_path))
    assert {row.path for row in found.timed} == {models[1]} and all(row.ratio == 1 for row in found.timed)
    (told,) = found.untimed
    assert (told.path, told.engine, told.reason) == (models[0], "transformers", "transformers: ValueError: out of luck")


def test_nothing_to_time_is_refused(models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISSING", "transformers")
    with pytest.raises(RefusedError, match=r"quick in transformers: transformers is not installed for .*python"):
        bench(models[:1], LOAD, python=install(tmp_path))


def test_by_default_all_cores_work() -> None:
    assert Load().threads == cores() >= 1


def test_paces_are_read_again_from_what_was_printed(models: list[str], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(bench(models, LOAD, python=install(tmp_path), draft=models[0]).model_dump_json())
    assert timed_in(file) == {models[0]: pytest.approx(100), models[1]: pytest.approx(50)}
    file.write_text('{"results": []}')
    with pytest.raises(InputError, match="is not what compress bench --json prints"):
        timed_in(file)
