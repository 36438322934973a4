"""What a model answers to a fixed text: few numbers, by which anyone can tell whether it is still the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator
from torch import Tensor

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.passes.model.sequences import Sequences
from compress.passes.model.tokenizer import load_tokenizer

TEXT = (
    "In 1969 two people walked on the Moon; a third waited above. «Naïve» readers ask: was it 3,844 × 10² km away?\n"
    "def distance(a, b):\n    return abs(a - b)  # in metres\n"
    "The answer, as so often, depends on when you look, from where, and how carefully the clocks were set."
)
"""Words, numbers, code and letters beyond ASCII, so that many parts of a tokenizer have a say."""

TOKENS = 32
"""How many of its tokens are asked."""
_LONGEST = 64
_SHORTEST = 8
_TOP = 8


class Next(BaseModel):
    """The likeliest tokens after the first `after` tokens, with the natural logarithms of their probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    after: int = Field(ge=1, le=_LONGEST)
    likeliest: tuple[tuple[NonNegativeInt, FiniteFloat], ...] = Field(min_length=1, max_length=_TOP)


class Fingerprint(BaseModel):
    """Answers at some places of one sequence of tokens: those of `text`, or counted up where there is no tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str | None
    tokens: tuple[NonNegativeInt, ...] = Field(min_length=_SHORTEST, max_length=_LONGEST)
    next: tuple[Next, ...] = Field(min_length=1, max_length=_LONGEST)

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if max(place.after for place in self.next) > len(self.tokens):
            raise ValueError("there are answers after more tokens than there are")
        return self

    @property
    def sequences(self) -> Sequences:
        return Sequences(torch.tensor([self.tokens]))

    @property
    def prompts(self) -> list[list[int]]:
        """The tokens before each place."""
        return [list(self.tokens[: place.after]) for place in self.next]


def fixed_tokens(artifact: Checkpoint, vocabulary: int) -> tuple[str | None, tuple[int, ...]]:
    """The text that the artifact's own tokenizer can read, and its tokens; else None, and tokens counted up."""
    try:
        tokens = tokens_of(artifact, TEXT)
    except InputError:  # a model without a tokenizer is a model too
        tokens = ()
    if len(tokens) < _SHORTEST or max(tokens) >= vocabulary:
        return None, tuple(token % vocabulary for token in range(TOKENS))
    return TEXT, tokens


def tokens_of(artifact: Checkpoint, text: str) -> tuple[int, ...]:
    """The first tokens of `text`, no special ones added. Raises InputError if there is no tokenizer."""
    found = load_tokenizer(artifact)(text, add_special_tokens=False)["input_ids"]
    return tuple(int(token) for token in found[:TOKENS])


def fingerprint(tokens: Sequence[int], text: str | None, logits: Tensor) -> Fingerprint:
    """What a model whose `logits` [tokens, vocabulary] these are answers at the quarters of `tokens`."""
    places = [len(tokens) * quarter // 4 for quarter in (1, 2, 3, 4)]
    return Fingerprint(
        text=text,
        tokens=tuple(tokens),
        next=tuple(
            Next(after=place, likeliest=_likeliest(row)) for place, row in zip(places, answers_at(logits, places))
        ),
    )


def _likeliest(row: Tensor) -> tuple[tuple[int, float], ...]:
    best = row.topk(min(_TOP, row.numel()))
    return tuple(zip(best.indices.tolist(), (round(value, 5) for value in best.values.tolist())))


def answers_at(logits: Tensor, places: Sequence[int]) -> Tensor:
    """Log-probabilities [places, vocabulary] fp32 of the token after the first `place` tokens of `logits`."""
    return logits[[place - 1 for place in places]].log_softmax(-1)


def largest_difference(recorded: Fingerprint, answers: Tensor) -> float:
    """How far `answers` [places, vocabulary] are from the recorded ones, in nats, at the worst token.

    Infinite where an answer says nothing of a recorded token.
    """
    worst = 0.0
    for place, row in zip(recorded.next, answers, strict=True):
        for token, expected in place.likeliest:
            difference = abs(float(row[token]) - expected) if token < row.numel() else math.inf
            worst = max(worst, math.inf if math.isnan(difference) else difference)
    return worst


def disagreements(recorded: Fingerprint, answers: Tensor, bound: float) -> list[int]:
    """The places (`after`) where another token is the likeliest, further ahead than errors of `bound` explain."""
    places = []
    for place, row in zip(recorded.next, answers, strict=True):
        known, best = row.nan_to_num(nan=-math.inf), place.likeliest[0][0]
        if best >= row.numel() or float(known.max() - known[best]) > 2 * bound:
            places.append(place.after)
    return places
