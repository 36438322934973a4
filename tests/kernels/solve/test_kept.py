"""Least squares of the weights that stay, against the normal equations in float64, row by row."""

import pytest
import torch
from hessians import problem

from compress.kernels.measure.error import output_energy
from compress.kernels.solve.kept import solve_kept
from compress.kernels.solve.mask import keep_groups, keep_share
from compress.kernels.solve.sparsegpt import sparsegpt


def reference(weight, hessian, kept, damp):
    weight, hessian = weight.double(), hessian.double()
    hessian = hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    solved = torch.zeros_like(weight)
    for row, keep in enumerate(kept):
        solved[row, keep] = torch.linalg.solve(hessian[keep][:, keep], (hessian @ weight[row])[keep])
    return solved


def halves(weight):
    return keep_share(weight.abs(), 0.5)


def groups(weight):
    return keep_groups(weight.abs(), 2, 4)


def uneven(weight):
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.4


@pytest.mark.parametrize("mask", [halves, groups, uneven])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (37, 96)])
def test_equals_the_normal_equations(rows, columns, mask):
    weight, hessian = problem(rows, columns)
    kept = mask(weight)
    solved = solve_kept(weight, hessian, kept, damp=0.01)
    torch.testing.assert_close(solved.double(), reference(weight, hessian, kept, 0.01), rtol=1e-3, atol=1e-5)
    assert bool((solved[~kept] == 0).all())


def test_better_than_what_sparsegpt_leaves_on_its_own_mask():
    weight, hessian = problem(40, 96)
    values, kept = sparsegpt(weight, hessian, sparsity=0.5, damp=0.01)
    solved = solve_kept(weight, hessian, kept, damp=0.01)
    assert output_energy(weight - solved, hessian) < output_energy(weight - values, hessian)


def test_a_row_that_keeps_nothing_and_one_that_keeps_all():
    weight, hessian = problem(2, 32)
    kept = torch.tensor([[False], [True]]).expand(2, 32)
    solved = solve_kept(weight, hessian, kept, damp=0.01)
    assert bool((solved[0] == 0).all())
    torch.testing.assert_close(solved[1], weight[1], rtol=1e-2, atol=1e-3)


def test_what_cannot_be_solved_stays():
    weight, hessian = problem(3, 32)
    kept = keep_share(weight.abs(), 0.5)
    assert torch.equal(solve_kept(weight, -hessian, kept, damp=0.01), weight * kept)
