"""Questions out of a .jsonl file, as a task that lm-eval can carry out without a hub.

A row is `{"question": "…", "answer": "…"}`: the answer is what the model is to write, to the end of the line. With
`"choices": ["…", …]` in every row, the answer is one of them, and the model's is the one that it finds likeliest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import BaseModel, ConfigDict, ValidationError

from compress.formats.errors import InputError

_HERE = Path(__file__).parent
_PROMPT = "Question: {{question}}\nAnswer:"
_LONGEST_ANSWER = 64
"""Tokens that a model may write."""


class Row(BaseModel):
    """One question; other keys of a row are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    question: str
    answer: str
    choices: list[str] = []


def shipped() -> dict[str, Path]:
    """The tasks that come with the package, by name."""
    return {path.stem: path for path in sorted(_HERE.glob("*.jsonl"))}


def task_of(path: Path) -> dict[str, Any]:
    """The file as a configuration of lm-eval's, named by its stem. Raises InputError naming the line that is wrong."""
    rows = list(_rows(path))
    if not rows:
        raise InputError(f"{path} has no questions", 'a row is {"question": …, "answer": …}')
    return {
        "task": path.stem,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(_documents(rows))},
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": _PROMPT,
        "metadata": {"version": 1.0},
        **(_choosing() if rows[0].choices else _writing()),
    }


def _choosing() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "target",
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    }


def _writing() -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": _LONGEST_ANSWER, "do_sample": False},
        "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [_mean("exact_match")],
    }


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _documents(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """As columns, which `datasets` wants alike in every row."""
    if not rows[0].choices:
        return [row.model_dump(include={"question", "answer"}) for row in rows]
    return [{**row.model_dump(), "target": row.choices.index(row.answer)} for row in rows]


def _rows(path: Path) -> Iterator[Row]:
    first: Row | None = None
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            row = _row(line, f"{path}, line {number}")
            first = first or row
            if bool(row.choices) != bool(first.choices):
                raise InputError(f"{path}, line {number}: all rows have choices, or none", "make it two files")
            yield row


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from error


def _row(line: str, where: str) -> Row:
    try:
        row = Row.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc'])) or 'the row'}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if row.choices and row.answer not in row.choices:
        raise InputError(f"{where}: the answer {row.answer!r} is none of the choices")
    return row
