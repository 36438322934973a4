"""Rows into texts: one at a time, named where they are no good, chats with their answers where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.passes.forward.texts.rows import Document, Rows
from compress.passes.model.tokenizer import load_tokenizer

CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    found = load_tokenizer(open_checkpoint(tiny_llama))
    found.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    return found


def test_rows_end_with_line_feeds_alone(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    texts = ["one\u2028line", "two\x85three", "four\u2029", "\x0b"]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\r\n\n".join(json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts))
    found = list(Rows(tokenizer).file(path))
    assert found == [Document(text, f"{path}:{2 * number + 1}") for number, text in enumerate(texts)]


def test_rows_are_read_no_further_than_they_are_wanted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\nbad')
    assert next(Rows(tokenizer).file(path)).text == "good"


@pytest.mark.parametrize(
    "line", [b"\xff{}", b"[" * 100_000, b'{"text": 1' + b"0" * 5000 + b"}", b"{'text': 'a'}", b'{"text": NaN}', b"null"]
)
def test_rows_that_are_none_are_named(line: bytes, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line)
    with pytest.raises(InputError, match=r"bad\.jsonl:3"):
        list(Rows(tokenizer).file(path))


def test_answers_are_marked_where_they_are_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    assert Rows(tokenizer).document(CHAT, "here") == Document("<user>hello<assistant>hi", "here")
    marked = Rows(tokenizer, answers=True).document(CHAT, "here")
    assert marked == Document("<user>hello<assistant>hi", "here", [(11, 24)])  # no engine would give it <assistant>
    assert Rows(tokenizer, answers=True).document({"text": "hi"}, "here").answers is None


def test_a_chat_without_an_answer_is_named_with_its_row(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (CHAT, {"messages": CHAT["messages"][:1]})))
    assert len(list(Rows(tokenizer).file(path))) == 2
    with pytest.raises(InputError, match=r"chat\.jsonl:2: the chat has no answer") as caught:
        list(Rows(tokenizer, answers=True).file(path))
    assert "answers_only: false" in caught.value.hint


def test_a_tokenizer_that_knows_no_characters_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="does not tell which characters") as caught:
        Rows(Slow(), answers=True).document(CHAT, "here")  # type: ignore[arg-type]
    assert "answers_only: false" in caught.value.hint
