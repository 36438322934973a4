"""Beside a choice: the same candidate everywhere, sorts of linears priced by KL, and the best of several choices."""

from __future__ import annotations

import pytest
import torch

from compress.passes.choice.allocation import best, evenly, priced
from compress.passes.choice.bit_budget import Unit

UNITS = [Unit((f"layers.{layer}.{kind}",), 1, (1, 2, 4)) for layer in range(3) for kind in ("q_proj", "down_proj")]


@pytest.mark.parametrize(("most", "at"), [(6, 0), (11, 0), (12, 1), (23, 1), (24, 2), (100, 2)])
def test_evenly_is_the_largest_candidate_that_fits_everywhere(most: int, at: int) -> None:
    assert evenly(UNITS, most) == [at] * len(UNITS)


def test_errors_are_priced_by_what_each_sort_costs_alone() -> None:
    """The true KL is a weighted sum of errors: `priced` finds the weight of every sort."""
    weights = torch.tensor([1.0, 30.0, 2.0, 40.0, 3.0, 50.0], dtype=torch.float64)
    errors = torch.tensor([[0.4, 0.2, 0.1]] * 6, dtype=torch.float64)

    def judge(chosen: list[int]) -> float:
        return float(sum(weights[unit] * errors[unit, at] for unit, at in enumerate(chosen)))

    torch.testing.assert_close(priced(UNITS, errors.clone(), 0, judge), errors * weights.unsqueeze(1))


def test_the_best_of_choices_is_judged_once_each() -> None:
    seen: list[list[int]] = []

    def judge(chosen: list[int]) -> float:
        seen.append(chosen)
        return float(sum(chosen))

    assert best([[2, 1], [1, 1], [2, 1]], judge) == ([1, 1], 2.0)
    assert seen == [[2, 1], [1, 1]]
