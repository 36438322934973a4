"""Rows that cannot be read are named; a hub that cannot be reached is said at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.passes.forward.texts import documents
from compress.passes.forward.texts.rows import Rows
from compress.passes.model.tokenizer import load_tokenizer

GOOD = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}
BAD: dict[str, tuple[Any, str]] = {
    "no content": ({"role": "user", "text": "hello"}, "messages[1] has no `content`"),
    "no role": ({"content": "hello"}, "messages[1] has no `role`"),
    "null content": ({"role": "assistant", "content": None}, "messages[1] has no `content`"),
    "a word": ("hello", "messages[1] is no map"),
}


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    found = load_tokenizer(open_checkpoint(tiny_llama))
    found.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    return found


def rows(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.mark.parametrize("case", BAD)
def test_a_message_that_lacks_something_is_named_with_its_row(
    case: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    message, said = BAD[case]
    path = rows(tmp_path / "chat.jsonl", GOOD, {"messages": [GOOD["messages"][0], message]})
    with pytest.raises(InputError) as caught:
        list(documents.file(path, Rows(tokenizer)))
    assert str(caught.value) == f"{path}:2: {said}" and "content: text" in caught.value.hint


def test_a_call_of_a_tool_needs_no_content(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    path = rows(tmp_path / "chat.jsonl", {"messages": [GOOD["messages"][0], call]})
    assert [found.text for found in documents.file(path, Rows(tokenizer))] == ["<user>hello<assistant>"]


def test_a_row_that_the_template_does_not_take_is_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"chat\.jsonl:1: the chat template fails: roles must alternate"):
        list(documents.file(rows(tmp_path / "chat.jsonl", GOOD), Rows(tokenizer)))


def test_without_the_hub_a_dataset_is_refused_before_the_library_tries_again_and_again(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the library was asked"))
    with pytest.raises(InputError, match="dataset some/set: the hub cannot be reached: ") as caught:
        list(documents.dataset("some/set", "train", Rows(tokenizer)))
    assert "`builtin`" in caught.value.hint


def test_a_directory_of_rows_needs_no_hub(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "set").mkdir()
    rows(tmp_path / "set" / "train.jsonl", {"text": "one"}, {"text": "two"}, {"other": "three"})
    found = documents.dataset(str(tmp_path / "set"), "train", Rows(tokenizer))
    assert [next(found).text, next(found).text] == ["one", "two"]
    with pytest.raises(InputError, match="row 3: has neither"):
        next(found)
