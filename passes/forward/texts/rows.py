"""Rows of data into texts: a column of them, or chats through the chat template, with the answers marked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.formats.errors import InputError
from compress.passes.forward.texts.chats import Span, answers
from compress.passes.model.tokenizer import render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 1 << 30
"""Bytes of a row."""


@dataclass(frozen=True)
class Document:
    """A text, where it stands (`file:row`), and which characters of a chat are answers; None where nobody asked."""

    text: str
    where: str
    answers: Sequence[Span] | None = None


@dataclass(frozen=True)
class Rows:
    """How rows become texts: their `column`, or `messages` through the chat template; `answers` marks chats'."""

    tokenizer: PreTrainedTokenizerBase
    column: str = "text"
    answers: bool = False

    def file(self, path: Path) -> Iterator[Document]:
        """The rows of a .jsonl file, one at a time, cut at line feeds alone: JSON may hold what else cuts a line.

        Raises InputError that names the row.
        """
        try:
            with open(path, "rb") as file:
                for number in count(1):
                    if not (line := file.readline(_LONGEST)):
                        return
                    if line.strip():
                        yield self.document(_parse(line, where := f"{path}:{number}"), where)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error

    def document(self, record: Any, where: str) -> Document:
        """One row, which stands at `where`. Raises InputError that names it."""
        if isinstance(record, dict) and isinstance(record.get("messages"), list):
            _check_messages(record["messages"], where)
            try:
                return self._chat(record["messages"], where)
            except InputError as error:
                raise InputError(f"{where}: {error}", error.hint) from error
        if isinstance(record, dict) and isinstance(record.get(self.column), str):
            return Document(record[self.column], where)
        raise InputError(f"{where}: has neither `messages` nor a string `{self.column}`", "name it with `column:`")

    def _chat(self, messages: Sequence[Any], where: str) -> Document:
        if not self.answers:
            return Document(render_chat(self.tokenizer, messages, answer=False), where)
        if not self.tokenizer.is_fast:
            raise InputError(
                "the tokenizer does not tell which characters a token stands for, so answers are not told apart",
                "learn from whole chats: answers_only: false",
            )
        text, spans = answers(self.tokenizer, messages)
        return Document(text, where, spans)


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start} of the row)") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error


def _check_messages(messages: Sequence[Any], where: str) -> None:
    """A template takes what a message lacks for empty text; so it is said here."""
    for number, message in enumerate(messages):
        place, hint = f"{where}: messages[{number}]", "a message is {role: user, content: text}"
        if not isinstance(message, dict):
            raise InputError(f"{place} is no map", hint)
        wanted = ("role",) if message.get("tool_calls") else ("role", "content")
        for key in wanted:
            if message.get(key) is None:
                raise InputError(f"{place} has no `{key}`", hint)
