"""Work is never refused or thrown away: a stage is found again by what its bytes depend on, whatever else changed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from told import Notes

from compress.formats.errors import InputError, RefusedError
from compress.passes.core.journal import Committed, Journal
from compress.passes.core.linear import LinearPass
from compress.passes.sweep.units import Unit
from compress.recipes.jobs.export import export
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

GPTQ: dict[str, Any] = {"group_size": 32}


class OfAnotherVersion(Committed):
    """An artifact as some other version records one."""

    artifact: Any


OfAnotherVersion.__name__ = "Written"


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path) -> Callable[..., Recipe]:
    """recipe(gptq options, exports, **head) → a recipe on the tiny Llama."""

    def build(gptq: dict[str, Any] = GPTQ, exports: tuple[str, ...] = ("gptq",), **head: Any) -> Recipe:
        steps = [
            {"calibrate": {"data": head.pop("data", str(corpus)), "samples": 8, "seq_len": 32}},
            {"gptq": gptq},
            {"evaluate": {"data": "builtin", "samples": 2, "seq_len": 32}},
            *({"export": {"dialect": name}} for name in exports),
        ]
        return from_data({"model": str(tiny_llama), "passes": steps, **head})

    return build


@contextmanager
def nothing_computed() -> Iterator[None]:
    """Within, no weight may be rewritten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinearPass, "siblings", lambda *_: pytest.fail("computed again"))
        yield


@contextmanager
def stopped_after(lines: int) -> Iterator[None]:
    """Within, the run fails at the journal's line after `lines`."""
    append, seen = Journal.append, 0

    def counted(self: Journal, record: Any) -> None:
        nonlocal seen
        if seen == lines:
            raise KeyboardInterrupt
        seen += 1
        append(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", counted)
        yield


def weights(output: Path, dialect: str = "gptq") -> bytes:
    return (output / dialect / "model.safetensors").read_bytes()


def test_an_added_export_computes_nothing_again(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    first, notes = run(recipe(), tmp_path / "out"), Notes()
    before = weights(tmp_path / "out")
    with nothing_computed():
        second = run(recipe(exports=("gptq", "awq", "dense")), tmp_path / "out", reporter=notes)
    assert "anew" not in notes
    assert [Path(artifact.path).name for artifact in second.artifacts] == ["gptq", "awq", "dense"]
    assert weights(tmp_path / "out") == before and second.metrics == first.metrics
    run(recipe(exports=("dense",)), tmp_path / "other")
    assert weights(tmp_path / "other", "dense") == weights(tmp_path / "out", "dense")


def test_a_second_export_of_a_first_run_is_no_change_of_the_first(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    notes = Notes()
    run(recipe(exports=("dense", "gptq")), tmp_path / "out", reporter=notes)
    assert "computed anew" not in notes


def test_a_loosened_gate_computes_nothing_again(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    manifest = tmp_path / "out" / "gptq" / "compress.json"
    assert run(recipe(gates={"max_kl": 1e-9}), tmp_path / "out").missed
    assert "missed_gates" in json.loads(manifest.read_text())
    with nothing_computed():
        assert not run(recipe(gates={"max_kl": 5}), tmp_path / "out").missed
    assert "missed_gates" not in json.loads(manifest.read_text())


def test_another_thread_count_or_memory_cap_is_noted_and_goes_on(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with stopped_after(5), pytest.raises(KeyboardInterrupt):  # calibrate: 2, gptq: begun and two units
        run(recipe(), tmp_path / "out", max_ram=1 << 33)
    notes = Notes()
    torch.set_num_threads(2)
    try:
        run(recipe(), tmp_path / "out", max_ram=1 << 34, reporter=notes)
    finally:
        torch.set_num_threads(1)
    assert "gptq: goes on, 2 layers are done" in notes
    assert "threads 1, now 2" in notes and f"max_ram {1 << 33}, now {1 << 34}" in notes
    with nothing_computed():
        run(recipe(), tmp_path / "out", max_ram=1 << 32)


def test_a_pass_took_what_all_processes_together_took(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process is slow, the second one quick: its part alone is far below the sum."""
    siblings = LinearPass.siblings
    with monkeypatch.context() as patch, stopped_after(4), pytest.raises(KeyboardInterrupt):  # gptq: begun and a unit
        patch.setattr(LinearPass, "siblings", lambda *given: (time.sleep(0.5), siblings(*given))[1])
        run(recipe(), tmp_path / "out")
    report = run(recipe(), tmp_path / "out")
    units = Journal(tmp_path / "out" / ".compress" / "journal.jsonl").of(Unit)
    taken = {step.name: step.seconds for step in report.passes}
    assert taken["gptq"] >= sum(unit.seconds for unit in units) > 2
    assert report.seconds == sum(taken.values())
    again = run(recipe(exports=("gptq", "awq")), tmp_path / "out")
    assert again.passes[:4] == report.passes


def test_a_changed_pass_says_what_changed_and_changed_back_computes_nothing(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    run(recipe(), tmp_path / "out")
    four, notes = weights(tmp_path / "out"), Notes()
    run(recipe({**GPTQ, "bits": 3}), tmp_path / "out", reporter=notes)
    assert [line for line in notes.said if "anew" in line] == ["gptq is computed anew: gptq.bits was 4 and is 3"]
    assert "takes the place of what an earlier recipe wrote there" in notes
    assert weights(tmp_path / "out") != four
    with nothing_computed():
        run(recipe(), tmp_path / "out")
    assert weights(tmp_path / "out") == four


def test_other_calibration_text_does_not_touch_passes_without(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    def steps(samples: int) -> Recipe:
        calibrate = {"calibrate": {"data": str(corpus), "samples": samples, "seq_len": 32}}
        return from_data(
            {"model": str(tiny_llama), "passes": [calibrate, {"rtn": GPTQ}, {"export": {"dialect": "gptq"}}]}
        )

    run(steps(4), tmp_path / "out")
    with nothing_computed():
        run(steps(8), tmp_path / "out")


def test_a_first_run_that_fails_before_any_work_leaves_nothing(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt"):
        run(recipe(data=str(tmp_path / "none.txt")), tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()
    (tmp_path / "out" / "gptq").mkdir(parents=True)
    with pytest.raises(RefusedError, match="exists already"):
        run(recipe(), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gptq"]


def test_an_artifact_of_another_model_is_left_alone(
    recipe: Callable[..., Recipe], tiny_llama: Path, tmp_path: Path
) -> None:
    run(recipe(), tmp_path / "out")
    before, file = weights(tmp_path / "out"), tiny_llama / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RefusedError, match="of another model"):
        run(recipe(), tmp_path / "out")
    assert weights(tmp_path / "out") == before
    run(recipe(), tmp_path / "out", fresh=True)
    assert weights(tmp_path / "out") != before


def test_a_fresh_start_needs_no_word_of_what_another_version_wrote(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Records that cannot be read are refused by name, and forgotten with --fresh; their artifacts make way."""
    output = tmp_path / "out"
    run(recipe(), output)
    before, journal = weights(output), Journal(output / ".compress" / "journal.jsonl")
    for artifact in ({"path": "gptq", "more": 1}, {"path": "awq"}, {"path": "../kept"}, {}, "gptq"):
        journal.append(OfAnotherVersion(stage="x", artifact=artifact))
    shutil.copytree(output / "gptq", output / "awq")
    (tmp_path / "kept").mkdir()
    with pytest.raises(InputError, match="a record Written that this version did not write"):
        run(recipe(), output)
    run(recipe(), output, fresh=True)
    assert weights(output) == before and not (output / "awq").exists() and (tmp_path / "kept").exists()


def test_a_deleted_artifact_is_written_again(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run(recipe(), tmp_path / "out")
    before = weights(tmp_path / "out")
    for path in (tmp_path / "out" / "gptq").iterdir():
        path.unlink()
    (tmp_path / "out" / "gptq").rmdir()
    with nothing_computed():
        run(recipe(), tmp_path / "out")
    assert weights(tmp_path / "out") == before


def test_two_exports_into_one_folder(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run(recipe(), tmp_path / "out")
    source = str(tmp_path / "out" / "gptq")
    for dialect in ("awq", "compressed-tensors", "awq"):
        assert export(source, dialect, {}, tmp_path / "exports").dialect == dialect
    assert {path.name for path in (tmp_path / "exports").glob("[a-z]*")} == {
        "awq",
        "compressed-tensors",
        "compress.json",
    }


def test_text_of_the_models_own_is_sampled_once(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [{"calibrate": {"data": "self", "samples": 4, "seq_len": 16}}, {"gptq": GPTQ}]
    recipe = from_data({"model": str(tiny_llama), "passes": [*steps, {"export": {"dialect": "gptq"}}]})
    with stopped_after(3), pytest.raises(KeyboardInterrupt):  # begun, sampled, done
        run(recipe, tmp_path / "out")
    monkeypatch.setattr("compress.passes.model.whole.loading.load_model", lambda *_: pytest.fail("sampled again"))
    run(recipe, tmp_path / "out")
