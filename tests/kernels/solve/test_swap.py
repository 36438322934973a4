"""Swaps, against every pair of a row tried in float64 with the best value of what comes."""

import pytest
import torch
from hessians import problem

from compress.kernels.solve.mask import keep_groups, keep_share, scores
from compress.kernels.solve.sparsegpt import sparsegpt
from compress.kernels.solve.swap import swap


def start(rows, columns, method, group, seed=0):
    weight, hessian = problem(rows, columns, seed=seed)
    if method == "sparsegpt":
        values, kept = sparsegpt(weight, hessian, sparsity=0.5, pattern=group and (group // 2, group), damp=0.01)
        return weight, hessian, values, kept
    score = scores(weight, hessian.diagonal(), "wanda")
    kept = keep_groups(score, group // 2, group) if group else keep_share(score, 0.5)
    return weight, hessian, weight * kept, kept


def energy(weight, values, hessian):
    error = weight.double() - values.double()
    return (error @ hessian.double() * error).sum(-1)


def best_swap(row, values, kept, hessian, group, within=None):
    """The least error of the row after any one swap: the value of what comes by least squares."""
    hessian, least = hessian.double(), torch.inf
    for i in kept.nonzero()[:, 0].tolist():
        for j in (~kept if within is None else ~kept & within).nonzero()[:, 0].tolist():
            if group and i // group != j // group:
                continue
            tried = values.double().clone()
            tried[i] = 0
            error = row.double() - tried
            tried[j] = (error @ hessian)[j] / hessian[j, j]
            least = min(least, float(energy(row, tried, hessian)))
    return least


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("group", [None, 4, 8])
def test_ends_where_no_swap_of_a_row_helps(method, group):
    weight, hessian, values, kept = start(6, 24, method, group)
    swapped, mask = swap(weight, hessian, values, kept, group=group)
    before, after = energy(weight, values, hessian), energy(weight, swapped, hessian)
    assert bool((after <= before).all()) and float(after.sum()) < float(before.sum())
    for row in range(len(weight)):
        least = best_swap(weight[row], swapped[row], mask[row], hessian, group)
        assert least > float(after[row]) * (1 - 1e-3)


@pytest.mark.parametrize("group", [None, 4])
def test_only_what_is_within_comes(group):
    weight, hessian, values, kept = start(6, 24, "wanda", group)
    within = kept | (torch.rand(6, 24, generator=torch.Generator().manual_seed(3)) < 0.4)
    swapped, mask = swap(weight, hessian, values, kept, group=group, within=within)
    assert not bool((mask & ~within).any()) and torch.equal(mask.sum(1), kept.sum(1))
    assert bool((swapped[~mask] == 0).all()) and not torch.equal(mask, kept)
    for row in range(len(weight)):
        least = best_swap(weight[row], swapped[row], mask[row], hessian, group, within[row])
        assert least > float(energy(weight[row], swapped[row], hessian)) * (1 - 1e-3)


@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("limit", [1, 4, 256])
def test_counts_stay_and_no_row_gets_worse(group, limit):
    weight, hessian, values, kept = start(40, 160, "wanda", group)
    swapped, mask = swap(weight, hessian, values, kept, group=group, limit=limit)
    assert torch.equal(mask.sum(1), kept.sum(1))
    if group:
        assert bool((mask.view(40, -1, group).sum(2) == 2).all())
    assert bool((swapped[~mask] == 0).all())
    assert bool((energy(weight, swapped, hessian) <= energy(weight, values, hessian) * (1 + 1e-6)).all())
    assert int((mask != kept).sum()) <= 40 * 2 * limit


def test_one_swap_is_the_best_one():
    weight, hessian, values, kept = start(8, 24, "wanda", None, seed=3)
    swapped, _ = swap(weight, hessian, values, kept, limit=1)
    for row in range(8):
        best = min(
            best_swap(weight[row], values[row], kept[row], hessian, None),
            float(energy(weight[row], values[row], hessian)),
        )
        assert float(energy(weight[row], swapped[row], hessian)) == pytest.approx(best, rel=1e-4)


def test_dead_columns_do_not_come():
    weight, hessian, values, kept = start(8, 24, "wanda", None)
    dead = [1, 7]
    hessian[dead] = hessian[:, dead] = 0
    kept[:, dead], values[:, dead] = False, 0
    swapped, mask = swap(weight, hessian, values, kept)
    assert not bool(mask[:, dead].any()) and bool(swapped.isfinite().all())
