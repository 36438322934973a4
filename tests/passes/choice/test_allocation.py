"""Beside a choice: the same candidate everywhere, sorts of linears priced by KL, and the best of several choices."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from compress.passes.choice.allocation import best, evenly, priced, repriced
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


KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(("crossed", "asked"), [(False, 1 + 21), (True, 1 + 7 + 3)])
def test_kinds_and_thirds_are_measured_apart_where_that_is_less(crossed: bool, asked: int) -> None:
    """What a kind costs times what a third does is found from both alone; so it is about a choice."""
    units = [Unit((f"layers.{layer}.{kind}",), 1, (1, 2, 4)) for layer in range(6) for kind in KINDS]
    costs = [(1.0 + KINDS.index(kind)) * (1 + layer // 2) for layer in range(6) for kind in KINDS]
    errors = torch.tensor([[0.4, 0.2, 0.1]] * len(units), dtype=torch.float64)
    seen: list[list[int]] = []

    def judge(chosen: Sequence[int]) -> float:
        seen.append(list(chosen))
        return sum(float(errors[unit, at]) * costs[unit] for unit, at in enumerate(chosen))

    expected = errors * torch.tensor(costs, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(priced(units, errors.clone(), 0, judge, crossed), expected, rtol=1e-6, atol=1e-9)
    assert len(seen) == asked
    found = repriced(units, errors.clone(), [0, 1] * 21, judge, crossed)
    torch.testing.assert_close(found, expected, rtol=0.35 if crossed else 1e-6, atol=1e-9)
    assert len(seen) == 2 * asked


def test_the_best_of_choices_is_judged_once_each() -> None:
    seen: list[list[int]] = []

    def judge(chosen: list[int]) -> float:
        seen.append(chosen)
        return float(sum(chosen))

    assert best([[2, 1], [1, 1], [2, 1]], judge) == ([1, 1], 2.0)
    assert seen == [[2, 1], [1, 1]]
