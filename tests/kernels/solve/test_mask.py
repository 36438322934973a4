"""Scores and masks, against their equations in float64, and by counting."""

import numpy as np
import pytest
import torch

from compress.kernels.solve.mask import keep_groups, keep_share, keep_share_of_all, packed, scores, unpacked


def problem(rows=6, columns=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, columns, generator=generator) * torch.rand(columns, generator=generator) ** 2
    return torch.randn(rows, columns, generator=generator), x


def test_magnitude_wanda_and_obd_are_those_of_their_papers():
    weight, x = problem()
    energy = x.square().sum(0)
    for i, row in enumerate(weight.double()):
        for j, w in enumerate(row):
            norm = x[:, j].double().norm()
            expected = {"magnitude": abs(w), "wanda": abs(w) * norm, "obd": 0.5 * w**2 * norm**2}
            for kind, value in expected.items():
                assert float(scores(weight, energy, kind)[i, j]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize(("sparsity", "kept"), [(0.5, 12), (0.7, 7), (0.0, 24), (1 / 3, 16)])
def test_of_each_row_the_largest_scores_stay(sparsity, kept):
    score = problem()[0].abs()
    mask = keep_share(score, sparsity)
    assert mask.sum(1).tolist() == [kept] * len(score)
    for row, keep in zip(score, mask):
        if 0 < kept < len(row):
            assert row[keep].min() >= row[~keep].max()


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (4, 8), (1, 4)])
def test_of_each_group_as_many_stay(kept, group):
    score = problem()[0].abs()
    mask = keep_groups(score, kept, group)
    assert (mask.unflatten(1, (-1, group)).sum(2) == kept).all()
    for scored, keep in zip(score.view(-1, group), mask.view(-1, group)):
        assert scored[keep].min() >= scored[~keep].max()


def test_of_all_rows_together_the_largest_scores_stay():
    score = problem()[0].abs()
    mask = keep_share_of_all(score, 0.7)
    assert int(mask.sum()) == score.numel() - round(0.7 * score.numel())
    assert score[mask].min() >= score[~mask].max()


def test_equal_scores_leave_exact_counts():
    assert keep_share(torch.zeros(3, 10), 0.5).sum(1).tolist() == [5, 5, 5]
    assert keep_groups(torch.ones(1, 8), 2, 4)[0].tolist() == [True, True, False, False] * 2


@pytest.mark.parametrize("shape", [(3, 7), (4, 16), (1, 1)])
def test_a_mask_comes_back_from_its_bits(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    bits = packed(mask)
    assert bits.dtype == torch.uint8 and len(bits) == -(-mask.numel() // 8)
    assert bits.tolist() == np.packbits(mask.numpy().ravel(), bitorder="little").tolist()
    assert torch.equal(unpacked(bits, shape), mask)
