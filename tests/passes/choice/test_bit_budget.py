"""Bits for modules: the choice against brute force at every budget, what is tied, what the plan reckons with."""

from __future__ import annotations

import itertools

import pytest
import torch

from compress.passes.choice.bit_budget import Allocations, Unit, average, largest_choices, tied_modules


def units_of(sizes, bits=(2, 3, 4, 8)):
    return [Unit((f"m{i}",), size, tuple(size * each for each in bits)) for i, size in enumerate(sizes)]


def brute_force(units, errors, most):
    sums = []
    for choice in itertools.product(range(errors.shape[1]), repeat=len(units)):
        if sum(unit.costs[at] for unit, at in zip(units, choice)) <= most:
            sums.append(float(sum(errors[row, at] for row, at in enumerate(choice))))
    return min(sums)


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_that_of_least_error_at_every_budget(seed):
    random = torch.Generator().manual_seed(seed)
    units = units_of((torch.randint(1, 9, (6,), generator=random) * 64).tolist())
    errors = torch.rand(6, 4, generator=random, dtype=torch.float64).sort(1, descending=True).values
    full = sum(unit.costs[-1] for unit in units)
    for most in torch.linspace(sum(unit.costs[0] for unit in units), full, 9).int().tolist():
        allocations = Allocations(units, errors, most)
        choice = allocations.at(allocations.levels)
        assert sum(unit.costs[at] for unit, at in zip(units, choice)) <= most
        error = float(sum(errors[row, at] for row, at in enumerate(choice)))
        assert error == pytest.approx(brute_force(units, errors, most), rel=1e-12)


def test_odd_sizes_never_exceed_the_budget_and_waste_little():
    random = torch.Generator().manual_seed(1)
    units = units_of((torch.randint(10**6, 10**7, (40,), generator=random) * 2 + 1).tolist())
    errors = torch.rand(40, 4, generator=random, dtype=torch.float64).sort(1, descending=True).values
    most = int(3.5 * sum(unit.weights for unit in units))
    allocations = Allocations(units, errors, most)
    spent = average(units, allocations.at(allocations.levels))
    assert 3.45 < spent <= 3.5


@pytest.mark.parametrize("stored", [(2, 3, 4, 8), (4, 4, 4, 8), (4, 4, 8, 8), (2, 4, 4, 8), (8, 8, 8, 8)])
@pytest.mark.parametrize("target", [2.0, 2.7, 3.5, 5.0, 7.9, 8.0])
def test_the_plan_reckons_with_the_most_bytes_in_any_container(stored, target):
    """`stored`: the bits that a container takes for 2, 3, 4 and 8. Bound, and not much above what is possible."""
    units = units_of([64, 128, 320, 64, 512])
    most = int(target * sum(unit.weights for unit in units))

    def taken(choice):
        return sum(unit.weights * stored[at] for unit, at in zip(units, choice))

    possible = [
        taken(choice)
        for choice in itertools.product(range(4), repeat=len(units))
        if sum(unit.costs[at] for unit, at in zip(units, choice)) <= most
    ]
    assert max(possible) <= max(map(taken, largest_choices(units, most))) <= max(possible) + 2 * 512 * 6


@pytest.mark.parametrize("family, joined", [("llama", 4), ("gpt_neox", 4), ("mixtral", 3), ("qwen2_moe", 5)])
def test_layers_that_engines_join_are_one_unit(family, joined, tmp_path, make_model, begin):
    anatomy = begin(make_model(tmp_path / family, family), tmp_path / "work").skeleton.anatomy
    units = list(tied_modules(anatomy, frozenset(anatomy.linears)))
    assert sorted(name for unit in units for name in unit) == sorted(anatomy.linears)
    assert len(units) == joined * len(anatomy.layers)
    for unit in units:
        leaves = {name.rpartition(".")[2] for name in unit}
        assert leaves & {"q_proj", "k_proj", "v_proj"} in (set(), {"q_proj", "k_proj", "v_proj"})
        assert "up_proj" not in leaves or "gate_proj" in leaves
