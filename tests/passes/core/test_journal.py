"""The journal: what is committed is there for the next process, what is damaged is not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.formats.errors import InputError
from compress.passes.core.journal import Begun, Committed, Done, Followed, Journal


class Layer(Committed):
    number: int


def filled(path: Path) -> Journal:
    journal = Journal(path)
    journal.append(Begun(stage="a", title="gptq", depends={"bits": 4}))
    for number in range(3):
        journal.append(Layer(stage="a", number=number))
    journal.append(Done(stage="b", seconds=1.5))
    return journal


def test_another_process_reads_what_was_committed(tmp_path: Path) -> None:
    written = filled(tmp_path / "journal.jsonl")
    read = Journal(tmp_path / "journal.jsonl")
    assert read.records == written.records
    assert [layer.number for layer in read.of(Layer)] == [0, 1, 2]
    assert read.of(Layer, "b") == [] and read.of(Done, "b")[0].seconds == 1.5
    assert read.of(Begun, "a")[0].depends == {"bits": 4}


@pytest.mark.parametrize("damage", [
    lambda lines: [*lines[:2], lines[2][:-9]],
    lambda lines: [*lines[:2], lines[2].replace(b'"number": 1', b'"number": 7'), *lines[3:]],
    lambda lines: [*lines[:2], b"\xff\n", *lines[3:]],
    lambda lines: [*lines[:2], b"[]\n", *lines[3:]],
    lambda lines: [*lines[:2], lines[2].rstrip()],
])  # fmt: skip
def test_reading_stops_at_a_damaged_line_and_work_goes_on_from_there(damage, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    journal = Journal(path)
    assert [layer.number for layer in journal.of(Layer)] == [0]
    journal.append(Layer(stage="a", number=1))
    assert [layer.number for layer in Journal(path).of(Layer)] == [0, 1]


def test_a_record_of_another_version_is_named(tmp_path: Path) -> None:
    class Later(Committed):
        number: int
        more: str

    Later.__name__ = "Layer"
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Later(stage="a", number=1, more="x"))
    with pytest.raises(InputError, match="a record Layer that this version did not write"):
        journal.of(Layer)


def test_each_line_is_one_record_and_its_digest(tmp_path: Path) -> None:
    filled(tmp_path / "journal.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line["record"]["kind"] for line in lines] == ["Begun", "Layer", "Layer", "Layer", "Done"]
    assert all(len(line["sha256"]) == 64 for line in lines)


def test_what_a_stage_took_is_summed_over_processes(tmp_path: Path) -> None:
    """Each process has a clock of its own; what it did before the stage, and after its last record, is not counted."""
    path = tmp_path / "journal.jsonl"
    first = Journal(path, iter([100, 110, 112, 115]).__next__)
    first.take_up()
    first.append(Begun(stage="a", title="gptq", depends={}))
    first.append(Layer(stage="a", number=0))
    again = Journal(path, iter([0, 1, 2, 4, 7, 11]).__next__)
    again.append(Layer(stage="b", number=0))
    again.take_up()
    again.append(Layer(stage="a", number=1))
    assert again.seconds("a") == (2 + 3) + 2 + 3
    again.append(Done(stage="a", seconds=10))
    assert [record["took"] for record in Journal(path).records] == [2, 3, 1, 2, 7]


def test_who_reads_along_sees_what_is_whole_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    followed = Followed(path)
    assert followed.records == []
    written = filled(path)
    with path.open("ab") as file:
        file.write(b'{"record": {"kind": "La')  # as the other process writes it just now
    before = path.read_bytes()
    followed.refresh()
    assert followed.records == written.records == Followed(path).records
    with pytest.raises(RuntimeError, match="Layer is to be committed by the main process"):
        followed.append(Layer(stage="a", number=3))
    assert path.read_bytes() == before
