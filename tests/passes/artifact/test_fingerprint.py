"""What a model answers to a fixed text, and how far other answers are from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from compress.formats import open_checkpoint
from compress.passes.artifact.fingerprint import (
    TEXT,
    Fingerprint,
    answers_at,
    disagreements,
    fingerprint,
    fixed_tokens,
    largest_difference,
)

LOGITS = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def recorded() -> Fingerprint:
    return fingerprint(range(12), None, LOGITS)


def test_answers_stand_at_the_quarters(recorded: Fingerprint) -> None:
    assert [place.after for place in recorded.next] == [3, 6, 9, 12]
    token, value = recorded.next[0].likeliest[0]
    assert token == int(LOGITS[2].argmax()) and value == pytest.approx(float(LOGITS[2].log_softmax(-1).max()), abs=1e-5)
    assert len(recorded.next[0].likeliest) == 8
    assert recorded.prompts[1] == [0, 1, 2, 3, 4, 5] and recorded.sequences.ids.shape == (1, 12)


def test_the_same_answers_differ_by_nothing_but_rounding(recorded: Fingerprint) -> None:
    answers = answers_at(LOGITS, [3, 6, 9, 12])
    assert largest_difference(recorded, answers) < 1e-5 and disagreements(recorded, answers, 1e-4) == []


def test_the_worst_token_counts_and_a_silent_one_is_infinite(recorded: Fingerprint) -> None:
    answers = answers_at(LOGITS, [3, 6, 9, 12])
    best = recorded.next[1].likeliest[0][0]
    answers[1, best] -= 0.5
    assert largest_difference(recorded, answers) == pytest.approx(0.5, abs=1e-4)
    answers[1, best] = -1e4
    assert disagreements(recorded, answers, 0.01) == [6]
    answers[1, best] = math.nan
    assert largest_difference(recorded, answers) == math.inf
    assert largest_difference(recorded, answers[:, :1]) == math.inf


def test_text_where_there_is_a_tokenizer_else_tokens_counted_up(tiny_llama: Path) -> None:
    text, tokens = fixed_tokens(open_checkpoint(tiny_llama), 320)
    assert text == TEXT and len(tokens) >= 8 and max(tokens) < 320
    text, counted = fixed_tokens(open_checkpoint(tiny_llama), 5)
    assert text is None and counted == tuple(number % 5 for number in range(len(counted)))
    (tiny_llama / "tokenizer.json").unlink()
    assert fixed_tokens(open_checkpoint(tiny_llama), 320)[0] is None


def test_answers_after_more_tokens_than_there_are_are_refused(recorded: Fingerprint) -> None:
    with pytest.raises(ValidationError, match="more tokens than there are"):
        Fingerprint.model_validate({**recorded.model_dump(), "tokens": tuple(range(8))})
