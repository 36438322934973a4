"""Paces, from arrivals whose figures are plain to see."""

from __future__ import annotations

import pytest

from compress.recipes.engines.paces import pace_of, ratio
from compress.recipes.engines.writer import Writing


def test_a_conversation_alone() -> None:
    """The first token after half a second, then 10, 10 and 30 ms."""
    pace = pace_of([Writing([[(0.5, 1), (0.51, 2), (0.52, 3), (0.55, 4)]], 7)], prompt_tokens=100)
    assert (pace.prefill, pace.decode) == (200, pytest.approx(3 / 0.05))
    assert pace.first_token.p50 == pace.first_token.p99 == 0.5
    assert pace.token.p50 == pytest.approx(0.01)
    assert pace.token.p95 == pytest.approx(0.028)  # a tenth of the way from 30 back to 10 ms, of two steps
    assert pace.peak_bytes == 7


def test_tokens_that_come_together_share_their_time() -> None:
    pace = pace_of([Writing([[(1.0, 1), (1.4, 5)]], 1)], prompt_tokens=1)
    assert pace.decode == pytest.approx(10)
    assert pace.token.p50 == pace.token.p99 == pytest.approx(0.1)


def test_conversations_at_once_are_counted_together() -> None:
    pace = pace_of([Writing([[(1.0, 1), (2.0, 11)], [(1.5, 1), (3.0, 11)]], 1)], prompt_tokens=30)
    assert pace.prefill == 60 / 1.5
    assert pace.decode == 20 / 2.0
    assert pace.first_token.p50 == 1.25


def test_medians_over_rounds_and_their_largest_memory() -> None:
    rounds = [Writing([[(first, 1), (first + gap, 2)]], peak) for first, gap, peak in ((1, 1, 5), (2, 9, 6), (4, 2, 4))]
    pace = pace_of(rounds, prompt_tokens=4)
    assert (pace.prefill, pace.decode, pace.peak_bytes) == (2, 0.5, 6)
    assert pace.decode_rounds == [1, pytest.approx(1 / 9), 0.5]


def test_what_slows_a_whole_round_does_not_change_the_ratio() -> None:
    assert ratio([20, 2, 18], [10, 1, 9]) == 2
