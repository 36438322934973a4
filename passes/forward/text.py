"""Text into sequences of tokens: the options that calibration and evaluation share, and what they mean."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.formats.files.kept import code_digest
from compress.formats.files.storage import sha256_file
from compress.passes.forward import documents
from compress.passes.model.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILTIN = "builtin"
OWN = "self"
MADE = frozenset({BUILTIN, OWN})
"""Data that is no file and no dataset, and of which evaluation gets a part of its own."""
_CODE = [*Path(__file__).parent.glob("*.py"), *Path(__file__).parent.with_name("model").glob("*.py")]
"""What decides how text becomes sequences."""
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

    def extent(self) -> tuple[int, int] | None:
        """How many sequences it asks for, and their length."""
        return self.samples, self.seq_len

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

    def basis(self, source: Checkpoint, folder: Path) -> Mapping[str, Any] | None:
        """All that its sequences depend on; None for text of the model's own, and for datasets, which change."""
        file = self.file(folder)
        if self.data != BUILTIN and (file is None or not file.is_file()):
            return None
        return {
            "text": f"of Python {platform.python_version()}" if file is None else [file.suffix, sha256_file(file)],
            "options": {name: getattr(self, name) for name in TextOptions.model_fields},
            "tokenizer": {name: hashlib.sha256(data).hexdigest() for name, data in source.files().items()},
            "versions": [version(name) for name in ("transformers", "tokenizers")],
            "code": code_digest(_CODE),
        }


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
    make = _packed if options.pack else _padded
    sequences = make(options, tokenizer, _documents(options, tokenizer, held_out, folder), spread=not held_out)
    if sequences.count == 0:
        raise InputError(f"{options.data} has no text", "give a file or a dataset that has some, or `builtin`")
    return sequences


def _documents(options: TextOptions, tokenizer: PreTrainedTokenizerBase, held_out: bool, folder: Path) -> Iterator[str]:
    if options.data == BUILTIN:
        return documents.builtin(held_out)
    path = options.file(folder)
    if path is None:
        return documents.dataset(options.data, options.split, options.column, tokenizer)
    return documents.file(path, options.column, tokenizer)


def _packed(options: TextOptions, tokenizer: PreTrainedTokenizerBase, texts: Iterator[str], spread: bool) -> Sequences:
    prefix = _bos(tokenizer)
    body = options.seq_len - len(prefix)
    limit = None if spread else options.samples * body
    tokens: list[int] = []
    for document in texts:
        tokens.extend(_encode(tokenizer, document))
        if limit is not None and len(tokens) >= limit:
            break
    available = len(tokens) // body
    if tokens and not available:
        raise InputError(
            f"{options.data} has {len(tokens)} tokens, and one sequence takes {body}",
            f"give more text, or shorter sequences: seq_len: {max(2, len(tokens) + len(prefix))}",
        )
    count = min(options.samples, available)
    chosen = [number * available // count for number in range(count)] if spread else range(count)
    cut = [prefix + tokens[body * number : body * (number + 1)] for number in chosen]
    return Sequences(torch.tensor(cut, dtype=torch.int64).reshape(count, options.seq_len))


def _padded(options: TextOptions, tokenizer: PreTrainedTokenizerBase, texts: Iterator[str], spread: bool) -> Sequences:
    prefix = _bos(tokenizer)
    ids = torch.zeros(options.samples, options.seq_len, dtype=torch.int64)
    mask = torch.zeros(options.samples, options.seq_len, dtype=torch.bool)
    count = 0
    for document in texts:
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
