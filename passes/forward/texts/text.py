"""Text into sequences of tokens: the options that calibration, training and evaluation share, and what they mean."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError, UsageError, within
from compress.formats.files.kept import code_digest
from compress.formats.files.storage import sha256_file
from compress.passes.forward.texts import documents
from compress.passes.forward.texts.blend import BUILTIN, OWN, Part, shares
from compress.passes.forward.texts.cut import Cut, Cutter, joined
from compress.passes.forward.texts.own import begun
from compress.passes.forward.texts.rows import Document, Rows
from compress.passes.model.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CODE = [*Path(__file__).parent.glob("*.py"), *Path(__file__).parent.with_name("model").glob("*.py")]
"""What decides how text becomes sequences."""
Data = str | Annotated[tuple[Part, ...], Field(min_length=1)]
"""One text, or a blend of several."""
Place = tuple[str | int, ...]
"""Where something stands in the options of a pass: ("data", 1, "path")."""


class TextOptions(BaseModel):
    """Where text comes from and how it is cut into sequences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Data = Field(
        BUILTIN,
        description="a text file, a .jsonl file (`text`, or `messages` for the chat template), "
        "`builtin` (text that ships with Python), `self` (text that the untouched model writes), or the name of a "
        "dataset; or several, each with a weight: then `self` begins as the others do, and is of their domain",
    )
    samples: int = Field(128, ge=1, le=1 << 20, description="sequences of tokens")
    seq_len: int = Field(2048, ge=2, le=1 << 20, description="tokens per sequence")
    pack: bool = Field(True, description="run texts together into full sequences; false: one text per sequence, padded")
    split: str = Field("train", description="of a dataset")
    column: str = Field("text", description="of a dataset or a .jsonl file")

    @model_validator(mode="after")
    def _say_it_in_the_parts(self) -> Self:
        outside = [name for name in ("split", "column") if getattr(self, name) != Part.model_fields[name].default]
        if outside and not isinstance(self.data, str):
            raise ValueError(f"in a blend each part says its own {' and '.join(outside)}")
        return self

    def parts(self) -> Mapping[Place, Part]:
        """The texts, by where they stand in the options; one if `data` is no blend."""
        if isinstance(self.data, str):
            return {("data",): Part.model_construct(path=self.data, weight=1.0, split=self.split, column=self.column)}
        return {("data", number): part for number, part in enumerate(self.data)}

    @property
    def own(self) -> int:
        """How many of the sequences the model is to write itself."""
        parts = self.parts().values()
        counts = shares(self.samples, [part.weight for part in parts])
        return sum(count for part, count in zip(parts, counts) if part.path == OWN)

    def extent(self) -> tuple[int, int] | None:
        """How many sequences it asks for, and their length."""
        return self.samples, self.seq_len

    def texts(self, folder: Path) -> Mapping[Place, str]:
        """Which texts they are, by names that are the same for the same text; without what is made for the purpose."""
        return {place: name for place, part in self.parts().items() if (name := part.text(folder)) is not None}

    def basis(self, source: Checkpoint, folder: Path) -> Mapping[str, Any] | None:
        """All that its sequences depend on; None for datasets, which change."""
        texts = [_basis(part, folder) for part in self.parts().values()]
        return (
            None
            if None in texts
            else {
                "texts": texts,
                "options": self.model_dump(mode="json", include=set(TextOptions.model_fields)),
                "tokenizer": {name: hashlib.sha256(data).hexdigest() for name, data in source.files().items()},
                "versions": [version(name) for name in ("transformers", "tokenizers")],
                "code": code_digest(_CODE),
            }
        )


def _basis(part: Part, folder: Path) -> Sequence[str] | None:
    """What a text depends on; None where that cannot be told without reading it."""
    if part.path == BUILTIN:
        return ["Python", platform.python_version()]
    if part.path == OWN:
        return [OWN]
    file = part.file(folder)
    return [file.suffix, sha256_file(file)] if file is not None and isfile(file) else None


def sequences_of(
    options: TextOptions,
    tokenizer: PreTrainedTokenizerBase,
    held_out: bool,
    folder: Path = Path(),
    note: Callable[[str], None] = lambda _: None,
) -> Sequences:
    """The sequences that `options` describe; `held_out` picks the part of `builtin` that calibration never sees.

    A relative path begins at `folder`, if there is something there, else where the shell stands.
    Packed sequences are spread evenly over the text for calibration, and are its first windows when held out, as
    perplexity is measured, and of datasets, which are not read to their end. Each begins with the tokenizer's BOS where
    the model uses one. Of a blend each part has its share of them, one after the other. `note` takes what the user
    should know. What the model is to write is left to it (`Sequences.begun`).
    """
    cut = cut_of(Source(tokenizer, held_out, folder, note), options)
    return Sequences(cut.ids, cut.mask, cut.begun)


@dataclass(frozen=True)
class Source:
    """What texts are read with; see `sequences_of`. `answers`: those of chats are marked."""

    tokenizer: PreTrainedTokenizerBase
    held_out: bool
    folder: Path
    note: Callable[[str], None]
    answers: bool = False


def cut_of(source: Source, options: TextOptions) -> Cut:
    """The sequences that `options` describe. Raises InputError that says which part of a blend it speaks of."""
    _refuse_twice(options, source.folder)
    parts = options.parts()
    counts = dict(zip(parts, shares(options.samples, [part.weight for part in parts.values()])))
    made = dict[Place, Cut]()
    for place in sorted(parts, key=lambda place: parts[place].path == OWN):  # it goes on from what others begin
        with within(*place):
            made[place] = _cut(source, options, parts[place], counts[place], list(made.values()))
    return joined([made[place] for place in parts]) if len(made) > 1 else next(iter(made.values()))


def _cut(source: Source, options: TextOptions, part: Part, count: int, others: Sequence[Cut]) -> Cut:
    if not count:
        raise UsageError(
            f"{part.path} has no share of {options.samples} sequences",
            "raise its weight or `samples`, or take it out",
        )
    if part.path == OWN:
        return _own(source, options, count, others)
    spread = not source.held_out and (part.path == BUILTIN or part.file(source.folder) is not None)
    cutter = Cutter(source.tokenizer, count, options.seq_len, spread, part.path, source.note)
    cut = (cutter.packed if options.pack else cutter.padded)(_documents(source, part))
    if not (found := len(cut.ids)):
        raise InputError(f"{part.path} has no text", "give a file or a dataset that has some, or `builtin`")
    if found < count < options.samples:
        source.note(
            f"{part.path} has text for {found:,} sequences, its share is {count:,}: it weighs less than it should"
        )
    return cut


def _own(source: Source, options: TextOptions, count: int, others: Sequence[Cut]) -> Cut:
    if source.held_out:
        raise UsageError(f"`{OWN}`: text of the model's own flatters it", f"measure on a text, or on `{BUILTIN}`")
    return begun(source.tokenizer, count, options.seq_len, others, not options.pack)


def _documents(source: Source, part: Part) -> Iterator[Document]:
    rows = Rows(source.tokenizer, part.column, source.answers)
    if part.path == BUILTIN:
        return documents.builtin(source.held_out)
    path = part.file(source.folder)
    return documents.dataset(part.path, part.split, rows) if path is None else documents.file(path, rows)


def _refuse_twice(options: TextOptions, folder: Path) -> None:
    """A text that is two parts of a blend would be learned twice over."""
    seen = set[tuple[str, str]]()
    for place, part in options.parts().items():
        name = (part.text(folder) or part.path, part.column)
        if name in seen:
            with within(*place):
                raise UsageError(f"{part.path} is two parts of the blend", "name it once, with both weights")
        seen.add(name)
