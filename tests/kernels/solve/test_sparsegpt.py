"""SparseGPT, against OBS with an explicit inverse for every column that is left, in float64."""

import pytest
import torch
from hessians import problem

from compress.kernels.measure.error import output_energy
from compress.kernels.solve.mask import keep_share, scores
from compress.kernels.solve.sparsegpt import sparsegpt


def reference(weight, hessian, damp, sparsity, pattern, block=128):
    """Prune left to right: after each column all later ones are updated by OBS (arXiv 2301.00774, equation 3)."""
    weight = weight.double().clone()
    rows, columns = weight.shape
    hessian = hessian.double() + damp * hessian.double().diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(hessian[column:, column:]) for column in range(columns)]
    cost = torch.stack([inverse[0, 0] for inverse in inverses])
    gone = torch.zeros(rows, columns, dtype=torch.bool)
    width = block if pattern is None else pattern[1]
    for column in range(columns):
        if column % width == 0:
            part = slice(column, min(column + width, columns))
            score = weight[:, part] ** 2 / cost[part]
            if pattern is None:
                lowest = score.flatten().sort().indices[: round(score.numel() * sparsity)]
                gone[:, part] = torch.isin(torch.arange(score.numel()), lowest).view_as(score)
            else:
                least = score.sort(1).indices[:, : pattern[1] - pattern[0]]
                gone[:, part] = torch.zeros_like(score, dtype=torch.bool).scatter(1, least, True)
        inverse = inverses[column]
        passed = torch.where(gone[:, column], weight[:, column], 0.0) / inverse[0, 0]
        weight[:, column:] -= passed[:, None] * inverse[0]
    return weight.masked_fill(gone, 0.0), ~gone


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.5, None), (0.7, None), (0.5, (2, 4)), (0.5, (4, 8))])
@pytest.mark.parametrize("columns", [48, 160])
def test_equals_obs_column_by_column(sparsity, pattern, columns):
    weight, hessian = problem(9, columns)
    values, kept = sparsegpt(weight, hessian, sparsity=sparsity, pattern=pattern, damp=0.01)
    expected, mask = reference(weight, hessian, 0.01, sparsity, pattern)
    assert torch.equal(kept, mask)
    torch.testing.assert_close(values.double(), expected, rtol=1e-3, atol=1e-5)
    assert bool((values[~kept] == 0).all())


def test_better_than_a_mask_alone():
    weight, hessian = problem(40, 96)
    values, kept = sparsegpt(weight, hessian, sparsity=0.5, damp=0.01)
    alone = weight * keep_share(scores(weight, hessian.diagonal(), "wanda"), 0.5)
    error = output_energy(weight - values, hessian)
    assert error < output_energy(weight - alone, hessian)
    assert error < 0.7 * output_energy(weight - weight * kept, hessian)
    assert int(kept.sum()) == 40 * 48


def test_dead_columns_become_zero_and_inputs_are_not_changed():
    weight, hessian = problem(5, 32)
    hessian[3] = hessian[:, 3] = 0
    before = weight.clone(), hessian.clone()
    values, _ = sparsegpt(weight, hessian, sparsity=0.5, damp=0.01)
    assert bool((values[:, 3] == 0).all()) and bool(values.isfinite().all())
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


def test_a_hessian_that_no_damping_helps_gives_nothing():
    weight, _ = problem(3, 32)
    hessian = torch.eye(32)
    hessian[0, 1] = hessian[1, 0] = 1e9
    assert sparsegpt(weight, hessian, sparsity=0.5, damp=0.01) is None


@pytest.mark.parametrize("columns", [48, 300])
def test_what_was_pruned_before_stays_so_and_the_share_is_exact_of_all(columns):
    """Of uneven blocks, too: the mask before is by rows, and each block loses the same part of what it has."""
    weight, hessian = problem(9, columns)
    within = keep_share(scores(weight, hessian.diagonal(), "wanda"), 0.4)
    values, kept = sparsegpt(weight * within, hessian, sparsity=0.7, within=within, damp=0.01)
    assert not bool((kept & ~within).any()) and not bool(values[~kept].any())
    assert int(kept.sum()) == 9 * columns - round(9 * columns * 0.7)
    parts = [int(mask[:, :128].sum()) for mask in (kept, within)]
    assert parts[0] == pytest.approx(parts[1] * int(kept.sum()) / int(within.sum()), abs=1)
    masked = weight * within * kept
    assert output_energy(weight * within - values, hessian) < output_energy(weight * within - masked, hessian)


def test_all_that_is_left_may_stay():
    weight, hessian = problem(9, 48)
    within = keep_share(weight.abs(), 0.5)
    _, kept = sparsegpt(weight * within, hessian, sparsity=0.5, within=within, damp=0.01)
    assert torch.equal(kept, within)
