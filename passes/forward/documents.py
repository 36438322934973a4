"""Texts, one document after the other: files, rows of JSON and chats, datasets, what ships with Python."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data import topics
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from compress.formats.errors import InputError
from compress.passes.model.tokenizer import render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TEXT = 1 << 30
_PATIENCE = 3.0
"""Seconds in which the hub must answer; the library would try for half a minute, six times over."""


def builtin(held_out: bool) -> Iterator[str]:
    """The reference texts of `pydoc`: every fourth is held out."""
    for number, (_, text) in enumerate(sorted(topics.topics.items())):
        if (number % 4 == 0) == held_out:
            yield text


def file(path: Path, column: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The whole file; of a .jsonl file every row. Raises InputError that names the row."""
    text = _read(path)
    return _rows(text, path, column, tokenizer) if path.suffix == ".jsonl" else iter([text])


def dataset(name: str, split: str, column: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The rows of a dataset, by the name that `datasets` gives it, or by `name:config`. Raises InputError."""
    import datasets

    path, _, config = name.partition(":")
    if not Path(path).exists():
        _refuse_without_hub(name)
    try:
        records = datasets.load_dataset(path, config or None, split=split, streaming=True)
        for number, record in enumerate(records, start=1):
            yield _text_of(record, f"{path}, row {number}", column, tokenizer)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"dataset {name}: {first}", _NO_FILE) from error


_NO_FILE = "it is no file either; offline, give a text file or `builtin`"


def _refuse_without_hub(name: str) -> None:
    """Say at once that the hub cannot be reached. What it answers does not matter here."""
    from huggingface_hub import constants

    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE):
            return
    except HTTPError:
        return
    except URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # it is there; the library has certificates of its own
            return
        raise InputError(f"dataset {name}: the hub cannot be reached: {error.reason}", _NO_FILE) from error
    except OSError as error:
        raise InputError(f"dataset {name}: the hub cannot be reached: {error}", _NO_FILE) from error


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise InputError(f"{path} is not there or is not a file", "give a text file, .jsonl, or `builtin`")
        if path.stat().st_size > _MAX_TEXT:
            raise InputError(f"{path} is larger than 1 GiB", "cut it: calibration wants some thousand tokens")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _rows(text: str, path: Path, column: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not JSON: {error}") from error
            yield _text_of(record, f"{path}:{number}", column, tokenizer)


def _text_of(record: Any, where: str, column: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        _check_messages(record["messages"], where)
        try:
            return render_chat(tokenizer, record["messages"], answer=False)
        except InputError as error:
            raise InputError(f"{where}: {error}", error.hint) from error
    if isinstance(record, dict) and isinstance(record.get(column), str):
        return str(record[column])
    raise InputError(f"{where}: has neither `messages` nor a string `{column}`", "name it with `column:`")


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
