"""Text into sequences of tokens: the options that calibration and evaluation share, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from compress.formats.errors import InputError
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import render_chat

BUILTIN = "builtin"
OWN = "self"
MADE = frozenset({BUILTIN, OWN})
"""Data that is no file and no dataset, and of which evaluation gets a part of its own."""
_MAX_TEXT = 1 << 30
_TEXT_FILES = {".jsonl", ".txt", ".md", ".raw", ".text"}


class TextOptions(BaseModel):
    """Where text comes from and how it is cut into sequences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(
        "builtin",
        description="a text file, a .jsonl file (`text`, or `messages` for the chat template), "
        "`builtin` (text that ships with Python), or the name of a dataset",
    )
    samples: int = Field(128, ge=1, le=1 << 20, description="sequences of tokens")
    seq_len: int = Field(2048, ge=2, le=1 << 20, description="tokens per sequence")
    pack: bool = Field(True, description="run texts together into full sequences; false: one text per sequence, padded")
    split: str = Field("train", description="of a dataset")
    column: str = Field("text", description="of a dataset or a .jsonl file")

    def file(self, folder: Path) -> Path | None:
        """The file that `data` names, in `folder` or where the shell stands; None if it names no file."""
        if self.data in MADE:
            return None
        path = beside(folder, self.data)
        return path if path.suffix in _TEXT_FILES or path.is_file() else None

    def text(self, folder: Path) -> str | None:
        """Which text it is, by a name that is the same for the same text; None for one made for the purpose."""
        if self.data in MADE:
            return None
        file = self.file(folder)
        return f"{self.data} ({self.split})" if file is None else str(file.resolve())


def beside(folder: Path, name: str) -> Path:
    """What lies under that name in `folder`; where nothing does, what the name means where the shell stands."""
    path = folder / name
    try:
        return path if path.exists() else Path(name)
    except OSError:  # a name that no file can have
        return Path(name)


def sequences_of(
    options: TextOptions, tokenizer: PreTrainedTokenizerBase, held_out: bool, folder: Path = Path()
) -> Sequences:
    """The sequences that `options` describe; `held_out` picks the part of `builtin` that calibration never sees.

    A relative path begins at `folder`, if there is something there, else where the shell stands.
    Packed sequences are spread evenly over the text for calibration, and are its first windows when held out, as
    perplexity is measured. Each begins with the tokenizer's BOS where the model uses one.
    """
    documents = _documents(options, tokenizer, held_out, folder)
    make = _packed if options.pack else _padded
    sequences = make(options, tokenizer, documents, spread=not held_out)
    if sequences.count == 0:
        raise InputError(f"{options.data} has no text for a single sequence of {options.seq_len} tokens")
    return sequences


def _documents(options: TextOptions, tokenizer: PreTrainedTokenizerBase, held_out: bool, folder: Path) -> Iterator[str]:
    if options.data == BUILTIN:
        return _builtin(held_out)
    path = options.file(folder)
    if path is None:
        return _dataset(options, tokenizer)
    return _jsonl(path, options, tokenizer) if path.suffix == ".jsonl" else iter([_read(path)])


def _builtin(held_out: bool) -> Iterator[str]:
    """The reference texts of `pydoc`: every fourth is held out."""
    for number, (_, text) in enumerate(sorted(topics.topics.items())):
        if (number % 4 == 0) == held_out:
            yield text


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


def _jsonl(path: Path, options: TextOptions, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not JSON: {error}") from error
            yield _text_of(record, f"{path}:{number}", options.column, tokenizer)


def _text_of(record: Any, where: str, column: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        return render_chat(tokenizer, record["messages"], answer=False)
    if isinstance(record, dict) and isinstance(record.get(column), str):
        return str(record[column])
    raise InputError(f"{where}: has neither `messages` nor a string `{column}`", "name it with `column:`")


def _dataset(options: TextOptions, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    import datasets

    name, _, config = options.data.partition(":")
    try:
        records = datasets.load_dataset(name, config or None, split=options.split, streaming=True)
        yield from (_text_of(record, f"{name} row", options.column, tokenizer) for record in records)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        hint = "it is no file either; offline, give a text file or `builtin`"
        raise InputError(f"dataset {options.data}: {first}", hint) from error


def _packed(
    options: TextOptions, tokenizer: PreTrainedTokenizerBase, documents: Iterator[str], spread: bool
) -> Sequences:
    prefix = _bos(tokenizer)
    body = options.seq_len - len(prefix)
    limit = None if spread else options.samples * body
    tokens: list[int] = []
    for document in documents:
        tokens.extend(_encode(tokenizer, document))
        if limit is not None and len(tokens) >= limit:
            break
    available = len(tokens) // body
    count = min(options.samples, available)
    chosen = [number * available // count for number in range(count)] if spread else range(count)
    cut = [prefix + tokens[body * number : body * (number + 1)] for number in chosen]
    return Sequences(torch.tensor(cut, dtype=torch.int64).reshape(count, options.seq_len))


def _padded(
    options: TextOptions, tokenizer: PreTrainedTokenizerBase, documents: Iterator[str], spread: bool
) -> Sequences:
    prefix = _bos(tokenizer)
    ids = torch.zeros(options.samples, options.seq_len, dtype=torch.int64)
    mask = torch.zeros(options.samples, options.seq_len, dtype=torch.bool)
    count = 0
    for document in documents:
        sequence = (prefix + _encode(tokenizer, document))[: options.seq_len]
        if len(sequence) > len(prefix):
            ids[count, : len(sequence)], mask[count, : len(sequence)] = torch.tensor(sequence), True
            count += 1
        if count == options.samples:
            break
    return Sequences(ids[:count], mask[:count])


def _bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] if the tokenizer puts one in front of a text by itself."""
    ids = tokenizer("a").input_ids
    return [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids
