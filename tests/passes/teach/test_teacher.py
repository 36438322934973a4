"""Who may teach whom: models whose tokenizers agree, whatever padding their embeddings have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from compress.formats import open_checkpoint
from compress.formats.errors import InputError, RefusedError
from compress.passes.teach.teacher import PROBES, Teacher, open_teacher

MakeModel = Callable[..., Path]


@pytest.fixture
def teacher_path(tmp_path: Path, make_model: MakeModel) -> Path:
    return make_model(tmp_path / "teacher", "qwen3", seed=1)


def opened(name: str, student: Path) -> Teacher:
    return open_teacher(name, open_checkpoint(student), student.parent, torch.device("cpu"))


def retold(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tokenizer's file."""
    file = path / "tokenizer.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_another_architecture_with_the_same_tokens_may_teach(tiny_llama: Path, teacher_path: Path) -> None:
    teacher = opened("teacher", tiny_llama)
    assert teacher.checkpoint.path == teacher_path
    assert teacher.skeleton.vocabulary == 320
    assert teacher.vocabulary(rows=320) is None


def test_padding_counts_only_where_both_have_it(tiny_llama: Path, teacher_path: Path) -> None:
    tokens = len(AutoTokenizer.from_pretrained(teacher_path))
    assert opened("teacher", tiny_llama).vocabulary(rows=384) == tokens


def test_a_special_token_that_one_lacks(tiny_llama: Path, teacher_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_path)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.save_pretrained(teacher_path)
    with pytest.raises(RefusedError, match=r"'<\|im_end\|>' is \d+ in the teacher, no token in its student"):
        opened("teacher", tiny_llama)


def test_a_token_that_only_one_calls_special_is_no_difference(tiny_llama: Path, teacher_path: Path) -> None:
    """A chat model ends with a token that its base model has, and does not use."""
    tokenizer = AutoTokenizer.from_pretrained(teacher_path)
    tokenizer.add_special_tokens({"eos_token": "!"})
    tokenizer.save_pretrained(teacher_path)
    assert opened("teacher", tiny_llama).vocabulary(320) is None


def test_a_student_with_tokens_beyond_its_teachers(tiny_llama: Path, teacher_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_tokens([f"added{number}" for number in range(40)])
    tokenizer.save_pretrained(tiny_llama)
    with pytest.raises(RefusedError, match=r"it has 320 tokens, its student 3[0-9]+"):
        opened(str(teacher_path), tiny_llama)


def test_a_name_that_means_no_model(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match=r"nobody\.gguf"):
        opened("nobody.gguf", tiny_llama)


DIGITS = {"type": "Digits", "individual_digits": True}
CHANGES: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "merges in another order": lambda data: data["model"]["merges"].reverse(),
    "a space in front": lambda data: data["pre_tokenizer"].update(add_prefix_space=True),
    "digits apart": lambda data: data.update(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [DIGITS, data["pre_tokenizer"]]}
    ),
    "small letters": lambda data: data.update(normalizer={"type": "Lowercase"}),
    "ligatures undone": lambda data: data.update(normalizer={"type": "NFKC"}),
    "accents put together": lambda data: data.update(normalizer={"type": "NFC"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_probes_see_that_text_is_read_otherwise(change: str, tiny_llama: Path, teacher_path: Path) -> None:
    retold(teacher_path, CHANGES[change])
    with pytest.raises(RefusedError, match=r"teacher cannot teach tiny-llama: their tokens of .* differ") as caught:
        opened("teacher", tiny_llama)
    assert "same family" in caught.value.hint


def test_no_probe_is_said_twice() -> None:
    assert len(set(PROBES)) == len(PROBES)
