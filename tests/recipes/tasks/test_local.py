"""A file of questions becomes a task, or the line that is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.formats.errors import InputError
from compress.recipes.tasks.local import shipped, task_of

SUM = {"question": "1 + 1?", "answer": "2"}
FACT = {"question": "Which is blue?", "answer": "the sky", "choices": ["grass", "the sky"]}


def written(folder: Path, *rows: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_question_with_choices_knows_which_one_is_right(tmp_path: Path) -> None:
    task = task_of(written(tmp_path, FACT, "", {**FACT, "answer": "grass", "id": 7}))
    assert (task["task"], task["output_type"]) == ("mine", "multiple_choice")
    documents = task["custom_dataset"](config_source="inline")["test"]
    assert [document["target"] for document in documents] == [1, 0]
    assert documents[0]["choices"] == FACT["choices"]


def test_a_question_without_is_answered_in_writing(tmp_path: Path) -> None:
    task = task_of(written(tmp_path, SUM))
    assert (task["output_type"], task["generation_kwargs"]["until"]) == ("generate_until", ["\n"])
    assert list(task["custom_dataset"]()["test"]) == [SUM]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has no questions"),
        ([SUM, FACT], "line 2: all rows have choices, or none"),
        ([{**FACT, "answer": "the sea"}], "line 1: the answer 'the sea' is none of the choices"),
        ([SUM, "{"], "line 2: not JSON"),
        ([SUM, "[" * 100_000], "line 2: not JSON"),
        ([{"question": "why?"}], "line 1: answer: Field required"),
        ([{**SUM, "answer": 2}], "line 1: answer: Input should be a valid string"),
        (["[]"], "line 1: the row: "),
    ],
)
def test_what_is_wrong_is_told_with_its_line(rows: list[object], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        task_of(written(tmp_path, *rows))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: No such file"):
        task_of(tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8 text"):
        task_of(tmp_path / "bytes.jsonl")


def test_those_that_ship_are_one_of_each_kind() -> None:
    kinds = {name: task_of(path)["output_type"] for name, path in shipped().items()}
    assert kinds == {"facts": "multiple_choice", "sums": "generate_until"}
