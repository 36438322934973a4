"""Scales of integer groups: extreme values are in reach, a search only ever errs less, and by its importance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.kernels.search.integers import FloatParams, Zero, extreme_params, searched_params

LEVELS = 16
GROUPS = torch.randn(8, 4, 32, generator=torch.Generator().manual_seed(0))
EVEN = torch.ones(1, 4, 32)


def rounded(params: FloatParams, zero: Zero) -> Tensor:
    """What GROUPS become: s·(q − z), or s·q + m."""
    scale = params["scale"].unsqueeze(-1)
    if zero == "real":
        low = params["minimum"].unsqueeze(-1)
        return ((GROUPS - low) / scale).round().clamp(0, LEVELS - 1) * scale + low
    zero_point = params["zero"].unsqueeze(-1) if zero == "integer" else torch.tensor(LEVELS / 2)
    return ((GROUPS / scale + zero_point).round().clamp(0, LEVELS - 1) - zero_point) * scale


def error(params: FloatParams, zero: Zero, importance: Tensor = EVEN) -> float:
    return float((importance * (rounded(params, zero) - GROUPS).square()).sum())


@pytest.mark.parametrize("zero", ["middle", "integer", "real"])
def test_the_extreme_values_are_in_reach(zero: Zero) -> None:
    params = extreme_params(GROUPS, LEVELS, zero)
    largest = GROUPS.abs().argmax(-1, keepdim=True)
    off = (rounded(params, zero) - GROUPS).gather(-1, largest).abs().squeeze(-1)
    assert bool((off <= params["scale"].abs() * (1e-4 if zero == "middle" else 0.501)).all())


@pytest.mark.parametrize("zero", ["middle", "integer", "real"])
def test_a_search_errs_less_by_the_importance_it_was_given(zero: Zero) -> None:
    loud = torch.rand(1, 4, 32, generator=torch.Generator().manual_seed(1)).pow(4) + 1e-3
    plain, even, weighted = (
        extreme_params(GROUPS, LEVELS, zero),
        searched_params(GROUPS, EVEN, LEVELS, zero),
        searched_params(GROUPS, loud, LEVELS, zero),
    )
    assert error(even, zero) < error(plain, zero)
    assert error(weighted, zero, loud) < error(even, zero, loud)
    assert error(even, zero) < error(weighted, zero)
