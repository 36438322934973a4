"""The folder of a run: made and locked for the work, gone again where there was none, told of what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from told import Notes
from torch.distributed import HashStore  # type: ignore[attr-defined]

from compress.formats.errors import RefusedError
from compress.passes.artifact.write import Artifact, Written
from compress.passes.core.journal import Begun, Done
from compress.passes.core.processes import Joined
from compress.passes.core.stage import Stage
from compress.passes.gptq import GPTQ
from compress.passes.rtn import RTN
from compress.passes.sweep.units import Unit
from compress.recipes.workshop import WORK, begin, shared_workshop, workshop


def record(stage: str = "a") -> Begun:
    return Begun(stage=stage, title="gptq", depends={})


def test_where_nothing_was_committed_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), workshop(tmp_path / "deep" / "out", fresh=False):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with workshop(tmp_path / "mine", fresh=False):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_what_was_committed_stays_though_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), workshop(tmp_path / "out", fresh=False) as journal:
        journal.append(record())
        raise RuntimeError
    with workshop(tmp_path / "out", fresh=False) as journal:
        assert journal.of(Begun) == [record()]


def test_nobody_else_may_work_there_meanwhile(tmp_path: Path) -> None:
    with (
        workshop(tmp_path / "out", fresh=False) as journal,
        pytest.raises(RefusedError, match="process"),
        workshop(tmp_path / "out", fresh=True),
    ):
        pytest.fail("let in")
    assert journal.records == []


def test_who_joins_the_main_process_reads_along_and_locks_nothing(tmp_path: Path) -> None:
    store = HashStore()
    main, other = (Joined(store, index, 2, local=index, here=2) for index in range(2))
    with shared_workshop(tmp_path, True, main) as written, shared_workshop(tmp_path, True, other) as followed:
        written.append(record())
        assert followed.records == []
        followed.refresh()
        assert followed.of(Begun) == [record()]


def test_fresh_forgets_the_work_and_the_artifacts_that_are_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    figures = {"bytes": 1, "bits_per_weight": 4, "quantized_share": 1, "verification": {}}
    with workshop(out, fresh=False) as journal:
        artifact = Artifact(dialect="gptq", path="gptq", **figures)
        journal.append(Written(stage="a", source="s", artifact=artifact))
        (out / WORK / "stage-a").mkdir()
    for folder in ("gptq", "mine"):
        (out / folder).mkdir()
    with workshop(out, fresh=True) as journal:
        assert journal.records == [] and list((out / WORK).iterdir()) == []
        journal.append(record())
    assert sorted(path.name for path in out.iterdir()) == [WORK, "mine"]


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RefusedError, match="cannot make"), workshop(tmp_path / "out", fresh=False):
        pytest.fail("made")


def stage(work: Path, *passes: Any, **depends: Any) -> Stage:
    return Stage(passes, depends, work)


def begun(out: Path, *stages: Stage, number: int = 0, machine: dict[str, Any] | None = None) -> tuple[bool, list[str]]:
    """Whether that stage was complete, and what is said on beginning it."""
    notes = Notes()
    with workshop(out, fresh=False) as journal:
        return begin(journal, stages, number, machine or {}, notes), notes.said


def test_a_stage_is_complete_once_it_is_done(tmp_path: Path) -> None:
    one = stage(tmp_path, GPTQ(), bits=4)
    assert begun(tmp_path / "out", one) == (False, [])
    with workshop(tmp_path / "out", fresh=False) as journal:
        journal.append(Done(stage=one.key, seconds=1))
    assert begun(tmp_path / "out", one) == (True, [])
    with workshop(tmp_path / "out", fresh=False) as journal:
        assert len(journal.of(Begun)) == 1


def test_what_changed_is_told_by_field_against_the_likest_work_of_before(tmp_path: Path) -> None:
    text = "a text whose name is long"
    begun(tmp_path / "out", stage(tmp_path, GPTQ(), bits=2, damp=1, seed=1))
    begun(tmp_path / "out", stage(tmp_path, GPTQ(), bits=4, damp=1))
    begun(tmp_path / "out", stage(tmp_path, RTN(), bits=3, damp=1))
    _, said = begun(tmp_path / "out", stage(tmp_path, GPTQ(), bits=3, damp=1, data=text))
    assert said == ["gptq is computed anew: bits was 4 and is 3; data was not there and is a text whose name i…"]


def test_a_later_stage_does_not_repeat_what_the_one_before_has_told(tmp_path: Path) -> None:
    before = [stage(tmp_path, GPTQ(), bits=4), stage(tmp_path, RTN(), bits=4, skip=0)]
    now = [stage(tmp_path, GPTQ(), bits=3), stage(tmp_path, RTN(), bits=3, skip=0)]
    for number in range(2):
        begun(tmp_path / "out", *before, number=number)
    assert begun(tmp_path / "out", *now, number=0)[1] == ["gptq is computed anew: bits was 4 and is 3"]
    assert begun(tmp_path / "out", *now, number=1)[1] == []


def test_a_second_stage_of_the_same_recipe_is_no_work_of_before(tmp_path: Path) -> None:
    ours = [stage(tmp_path, RTN(), part=number) for number in range(2)]
    assert [begun(tmp_path / "out", *ours, number=number)[1] for number in range(2)] == [[], []]


def unit(stage: Stage, name: str, machine: dict[str, str | int]) -> Unit:
    done: dict[str, Any] = {"file": "x", "sha256": "y", "tensors": {}, "authors": {}, "seconds": 1}
    return Unit(stage=stage.key, unit=name, machine=machine, **done)


def test_another_machine_is_noted_and_the_layers_of_before_are_kept(tmp_path: Path) -> None:
    one = stage(tmp_path, GPTQ(), bits=4)
    machine: dict[str, str | int] = {"device": "cpu", "threads": 1}
    begun(tmp_path / "out", one, machine=machine)
    with workshop(tmp_path / "out", fresh=False) as journal:
        for name in ("model.layers.0", "model.layers.1"):
            journal.append(unit(one, name, machine))
    assert begun(tmp_path / "out", one, machine=machine) == (False, ["gptq: goes on, 2 layers are done"])
    complete, said = begun(tmp_path / "out", one, machine={**machine, "threads": 2, "max_ram": 5})
    assert not complete
    assert said[1] == "the layers of before were computed with other settings: threads 1, now 2; max_ram ?, now 5"
