"""ALPS: counts, against every mask there is of a small row, against SparseGPT, and where H says nothing."""

from itertools import combinations

import pytest
import torch
from hessians import problem

from compress.kernels.measure.error import output_energy
from compress.kernels.solve.alps import alps
from compress.kernels.solve.kept import solve_kept
from compress.kernels.solve.sparsegpt import sparsegpt


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"sparsity": 0.7}, {"pattern": (2, 4)}, {"pattern": (4, 8)}])
def test_as_many_stay_as_are_asked_for_and_the_rest_is_zero(options):
    weight, hessian = problem(24, 96)
    values, kept = alps(weight, hessian, damp=0.01, **options)
    assert torch.equal(values != 0, kept)
    if pattern := options.get("pattern"):
        assert bool((kept.unflatten(1, (-1, pattern[1])).sum(2) == pattern[0]).all())
    else:
        assert int(kept.sum()) == kept.numel() - round(kept.numel() * options["sparsity"])


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"sparsity": 0.7}, {"pattern": (2, 4)}])
def test_errs_less_than_sparsegpt_with_values_solved_for_both(options):
    weight, hessian = problem(40, 96)
    errors = []
    for method in (alps, sparsegpt):
        _, kept = method(weight, hessian, damp=0.01, **options)
        errors.append(output_energy(weight - solve_kept(weight, hessian, kept, damp=1e-4), hessian))
    assert errors[0] < 0.95 * errors[1]


def test_comes_near_the_best_of_all_masks_of_a_row():
    """Of 8 columns 4 stay: 70 masks, each with its own least squares."""
    near = 0
    for seed in range(20):
        weight, hessian = problem(1, 8, seed=seed)

        def error(kept, weight=weight, hessian=hessian):
            return output_energy(weight - solve_kept(weight, hessian, kept, damp=1e-4), hessian)

        masks = [torch.isin(torch.arange(8), torch.tensor(chosen)).view(1, 8) for chosen in combinations(range(8), 4)]
        best = min(error(mask) for mask in masks)
        near += error(alps(weight, hessian, sparsity=0.5, damp=1e-4)[1]) <= 1.1 * best
    assert near >= 15


def test_what_was_pruned_before_stays_so():
    weight, hessian = problem(24, 96)
    first, within = alps(weight, hessian, sparsity=0.4, damp=0.01)
    values, kept = alps(first, hessian, sparsity=0.7, within=within, damp=0.01)
    assert not bool((kept & ~within).any()) and torch.equal(values != 0, kept)
    assert int(kept.sum()) == kept.numel() - round(kept.numel() * 0.7)


def test_inputs_that_are_never_there_get_no_weight():
    weight, hessian = problem(10, 32)
    hessian[5], hessian[:, 5] = 0, 0
    values, _ = alps(weight, hessian, sparsity=0.5, damp=0.01)
    assert bool((values[:, 5] == 0).all()) and bool(values.isfinite().all())


def test_none_where_the_inputs_cannot_be_factored():
    weight, hessian = problem(3, 32)
    assert alps(weight, hessian - 5 * hessian.diagonal().diag(), sparsity=0.5, damp=0.01) is None
