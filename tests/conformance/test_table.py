"""The conformance table's own judgement: an engine that answers nothing is not right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).with_name("table")))
from cells import compared, is_green, silent


def test_an_answer_of_nan_is_silence() -> None:
    expected = torch.randn(3, 50).log_softmax(-1)
    assert silent(torch.full((3, 50), float("nan")), expected) == pytest.approx(1)
    assert silent(expected, expected) == pytest.approx(0, abs=1e-6)
    unlikely = expected.clone()
    unlikely[0, expected[0].argmin()] = float("nan")
    assert silent(unlikely, expected) < 0.01
    assert silent(expected[:, :10], expected) > 0.5


def test_a_cell_is_green_where_the_divergence_is_small() -> None:
    expected = torch.randn(3, 50).log_softmax(-1)
    other = torch.randn(3, 50).log_softmax(-1)
    assert is_green({**compared(expected, expected), "limit": 0.05})
    assert not is_green({**compared(other, expected), "limit": 0.05})
    assert not is_green({"message": "no"})
