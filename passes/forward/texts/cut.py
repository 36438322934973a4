"""Texts cut into sequences of tokens: run together, or each in a sequence of its own."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compress.formats.errors import InputError
from compress.passes.forward.texts.chats import learned
from compress.passes.forward.texts.rows import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Cut:
    """ids [sequences, length] int64; mask [sequences, length] bool where padded (True = a real token).

    answers [sequences, length] bool: the tokens that are to be learned; None: all real ones. begun [sequences] int64:
    so many tokens of each are there, and the model is to write the rest; None: all are there.
    """

    ids: Tensor
    mask: Tensor | None = None
    answers: Tensor | None = None
    begun: Tensor | None = None


@dataclass(frozen=True)
class Cutter:
    """Makes `count` sequences of `length` tokens, or as many as there is text for.

    `spread`: taken evenly from the text, else from its beginning. `who` names the text in messages, `note` takes what
    the user should know.
    """

    tokenizer: PreTrainedTokenizerBase
    count: int
    length: int
    spread: bool
    who: str
    note: Callable[[str], None]

    def packed(self, texts: Iterable[Document]) -> Cut:
        """The texts run together and cut into full sequences. Raises InputError for less than one.

        A chat whose answers are learned, and that fits into one sequence, is in one, with all its questions.
        """
        prefix = bos(self.tokenizer)
        body = self.length - len(prefix)
        tokens, marks = self._run_together(texts, body, 0 if prefix else 1)
        available = len(tokens) // body
        if tokens and not available:
            raise InputError(
                f"{self.who} has {len(tokens)} tokens, and one sequence takes {body}",
                f"give more text, or shorter sequences: seq_len: {max(2, len(tokens) + len(prefix))}",
            )
        bodies, answers = (_windows(data, available, body) for data in (np.asarray(tokens), np.frombuffer(marks, bool)))
        chosen = self._chosen(answers[:, 0 if prefix else 1 :].any(1))
        first = torch.tensor(prefix, dtype=torch.int64).expand(len(chosen), -1)
        ids = torch.cat([first, bodies[chosen].long()], 1)
        return Cut(ids, answers=None if answers.all() else torch.cat([first < 0, answers[chosen]], 1))

    def padded(self, texts: Iterable[Document]) -> Cut:
        """One text in each sequence. Raises InputError for a chat of which no answer is left in it."""
        prefix = bos(self.tokenizer)
        rows: list[tuple[array[int], bytes]] = []
        long, chats = 0, False
        for document, tokens, marks in islice(self._encoded(texts), self.count):
            if tokens[: len(prefix)] != prefix:  # a chat template may have written it
                tokens, marks = prefix + tokens, bytes(len(prefix)) + marks
            self._refuse_lost_answers(document, marks)
            rows.append((array("i", tokens[: self.length]), marks[: self.length]))
            long, chats = long + (len(tokens) > self.length), chats or document.answers is not None
        if long:
            self.note(f"{self.who}: {long:,} of {len(rows):,} texts are cut off after {self.length:,} tokens")
        filled = _filled(rows, self.length)
        return filled if chats else Cut(filled.ids, filled.mask)

    def _run_together(self, texts: Iterable[Document], body: int, start: int) -> tuple[array[int], bytearray]:
        """The tokens of all texts, or of as many as there must be, and 1 for each that is to be learned.

        `body` of them make a sequence, and the first `start` of these are never learned.
        """
        tokens, marks = array("i"), bytearray()
        seen = useful = 0
        for document, more, marked in self._encoded(texts):
            room = -len(tokens) % body
            if document.answers is not None and room < len(more) <= body:  # its beginning fills up, then it begins anew
                tokens.extend(more[:room])
                marks.extend(bytes(room))
            tokens.extend(more)
            marks.extend(marked)
            while (seen + 1) * body <= len(tokens):
                useful += 1 in marks[seen * body + start : (seen + 1) * body]
                seen += 1
            if not self.spread and useful >= self.count:
                break
        return tokens, marks

    def _encoded(self, texts: Iterable[Document]) -> Iterator[tuple[Document, list[int], bytes]]:
        """Texts that have tokens, without any that the tokenizer would add, and 1 for each that is to be learned."""
        for document in texts:
            offsets = document.answers is not None
            found = self.tokenizer(
                document.text, add_special_tokens=False, verbose=False, return_offsets_mapping=offsets
            )
            if count := len(found.input_ids):
                marks = b"\1" * count if document.answers is None else learned(found.offset_mapping, document.answers)
                yield document, found.input_ids, marks

    def _chosen(self, useful: Tensor) -> Tensor:
        """The numbers of the sequences to take, of those in which there is something to learn ([available] bool)."""
        usable = useful.nonzero().flatten()
        if len(useful) and not len(usable):
            raise InputError(f"{self.who}: no sequence holds an answer", "give longer sequences, or say pack: false")
        if idle := len(useful) - len(usable):
            self.note(f"{self.who}: {idle:,} of {len(useful):,} sequences hold no answer and are left out")
        count = min(self.count, len(usable))
        return usable[[number * len(usable) // count if self.spread else number for number in range(count)]]

    def _refuse_lost_answers(self, document: Document, marks: bytes) -> None:
        """The first token of a sequence is not learned: nothing comes before it."""
        if document.answers is not None and 1 not in marks[1 : self.length]:
            raise InputError(
                f"{document.where}: no answer to learn within {self.length:,} of its {len(marks):,} tokens",
                "take the chat out, raise seq_len, or say pack: true",
            )


def joined(parts: Sequence[Cut]) -> Cut:
    """The sequences of several texts, one text after the other."""
    masks = [torch.ones_like(part.ids, dtype=torch.bool) if part.mask is None else part.mask for part in parts]
    answers = [mask if part.answers is None else part.answers for part, mask in zip(parts, masks)]
    begun = [torch.full(part.ids.shape[:1], part.ids.shape[1]) if part.begun is None else part.begun for part in parts]
    return Cut(
        torch.cat([part.ids for part in parts]),
        None if all(part.mask is None for part in parts) else torch.cat(masks),
        None if all(part.answers is None for part in parts) else torch.cat(answers),
        None if all(part.begun is None for part in parts) else torch.cat(begun),
    )


def _windows(data: np.ndarray[tuple[int], np.dtype[Any]], count: int, size: int) -> Tensor:
    return torch.from_numpy(data)[: count * size].reshape(count, size)


def _filled(rows: Sequence[tuple[array[int], bytes]], length: int) -> Cut:
    """The tokens of each row, at most `length`, with what is to be learned of them."""
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    mask, answers = torch.zeros(2, len(rows), length, dtype=torch.bool)
    for number, (tokens, marks) in enumerate(rows):
        end = len(tokens)
        ids[number, :end], mask[number, :end] = torch.tensor(tokens), True
        answers[number, :end] = torch.tensor(list(marks))
    return Cut(ids, mask, answers)


def bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """[BOS] if the tokenizer puts one in front of a text by itself."""
    ids = tokenizer("a").input_ids
    return [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []
