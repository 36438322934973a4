"""One head for several: against the same least squares solved another way, and where nothing may be lost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.kernels.solve.align import How, merge, merge_effort, merge_loss, neighbours

WIDTH, COLUMNS = 6, 20
PAIRS = ((0, 3), (1, 4), (2, 5))
ALL = tuple(range(WIDTH))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotations(count: int) -> Tensor:
    return torch.linalg.qr(randn(count, WIDTH, WIDTH, seed=1))[0]


def turns_of_pairs(angles: Tensor) -> Tensor:
    """[heads, width, width] of `angles` [heads, pairs]."""
    turns = torch.zeros(len(angles), WIDTH, WIDTH, dtype=torch.float64)
    for (i, j), angle in zip(PAIRS, angles.T):
        turns[:, i, i] = turns[:, j, j] = angle.cos()
        turns[:, i, j], turns[:, j, i] = -angle.sin(), angle.sin()
    return turns


def weights(heads: int) -> Tensor:
    roots = randn(heads, WIDTH, WIDTH, seed=2)
    return roots @ roots.mT


def merged(heads: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """The shared head, and the turns."""
    mixes, turns = merge(heads, weight, *options)
    return (mixes @ heads).sum(0), turns


def lost(heads: Tensor, weight: Tensor, shared: Tensor, turns: Tensor) -> float:
    gap = heads - turns @ shared
    return float(torch.einsum("hic,hij,hjc->", gap, weight, gap))


@pytest.mark.parametrize("how", ["aligned", "shared"])
def test_heads_that_are_rotations_of_one_another_lose_nothing(how: How) -> None:
    heads = rotations(3) @ randn(WIDTH, COLUMNS)
    shared, turns = merged(heads, weights(3), how, (), ALL)
    torch.testing.assert_close(turns @ shared, heads)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(WIDTH, dtype=torch.float64).expand(3, -1, -1))
    assert merged(heads, weights(3), "mean", (), ALL)[0].norm() < 0.9 * heads[0].norm()


@pytest.mark.parametrize("how", ["aligned", "shared"])
def test_pairs_are_only_turned_as_a_rotary_embedding_does(how: How) -> None:
    heads = turns_of_pairs(randn(3, len(PAIRS))) @ randn(WIDTH, COLUMNS)
    shared, turns = merged(heads, weights(3), how, PAIRS, ())
    torch.testing.assert_close(turns @ shared, heads)
    for rotary in turns_of_pairs(randn(4, len(PAIRS), seed=3)):
        torch.testing.assert_close(turns @ rotary, rotary @ turns)


@pytest.mark.parametrize("turned", [True, False], ids=["pairs", "free"])
@pytest.mark.parametrize("how", ["mean", "aligned", "shared"])
def test_heads_that_are_the_same_keep_every_bit(how: How, turned: bool) -> None:
    head = randn(WIDTH, COLUMNS).float().double()
    shared, turns = merged(head.expand(3, -1, -1), weights(3), how, PAIRS if turned else (), () if turned else ALL)
    assert torch.equal(shared.float(), head.float())
    assert torch.equal(turns, torch.eye(WIDTH, dtype=torch.float64).expand(3, -1, -1))


def test_what_nothing_may_turn_is_pooled() -> None:
    heads = randn(3, WIDTH, COLUMNS)
    shared, turns = merged(heads, weights(3), "shared", ((0, 3),), (5,))
    rest = [1, 2, 4]
    torch.testing.assert_close(shared[rest], heads.mean(0)[rest])
    assert torch.equal(turns[:, rest], torch.eye(WIDTH, dtype=torch.float64).expand(3, -1, -1)[:, rest])


def test_the_closed_form_of_a_rotation_is_the_best_of_all_angles() -> None:
    """Two heads of one pair: the phase between them, against a search over angles."""
    heads = randn(2, 2, COLUMNS)
    shared, turns = merged(heads, torch.eye(2, dtype=torch.float64).expand(2, -1, -1), "aligned", ((0, 1),), ())
    angles = torch.linspace(0, 2 * torch.pi, 20001, dtype=torch.float64)
    cosines, sines = angles.cos(), angles.sin()
    rotary = torch.stack([cosines, -sines, sines, cosines], -1).unflatten(1, (2, 2))
    best = (rotary @ heads[1] - heads[0]).square().sum((1, 2)).min() / 2  # each is half of it from the mean
    assert (heads - turns @ shared).square().sum() == pytest.approx(float(best), rel=1e-6)


def test_procrustes_is_stationary() -> None:
    heads = rotations(4) @ randn(WIDTH, COLUMNS) + 0.3 * randn(4, WIDTH, COLUMNS, seed=4)
    shared, turns = merged(heads, weights(4), "aligned", (), ALL)
    torch.testing.assert_close(shared, (turns.mT @ heads).mean(0))
    moved = heads @ shared.mT @ turns.mT  # symmetric and ≥ 0 where the polar factor is the best rotation
    torch.testing.assert_close(moved, moved.mT, rtol=1e-3, atol=1e-3)
    assert torch.linalg.eigvalsh(moved).min() > -1e-6


def test_the_shared_head_is_the_best_of_its_rank() -> None:
    """Its error are the singular values that are left of all weighted heads: Eckart and Young, in numpy's words."""
    heads, weight = randn(3, WIDTH, COLUMNS), weights(3)
    stacked = (torch.linalg.cholesky(weight).mT @ heads).flatten(0, 1)
    left = torch.linalg.svdvals(stacked)[WIDTH:].square().sum()
    shared = lost(heads, weight, *merged(heads, weight, "shared", (), ALL))
    assert shared == pytest.approx(float(left), rel=1e-9)
    aligned = lost(heads, weight, *merged(heads, weight, "aligned", (), ALL))
    assert shared < aligned < lost(heads, weight, *merged(heads, weight, "mean", (), ALL))


def test_a_shared_pair_is_the_first_singular_vector_of_complex_rows() -> None:
    heads, weight = randn(3, WIDTH, COLUMNS), weights(3)
    energy = weight.diagonal(dim1=1, dim2=2)
    flat = torch.diag_embed((energy + energy.roll(WIDTH // 2, 1)) / 2)  # a pair counts as one
    found = lost(heads, flat, *merged(heads, weight, "shared", PAIRS, ()))
    left = 0.0
    for i, j in PAIRS:
        rows = torch.complex(heads[:, i], heads[:, j]) * flat[:, i, i].sqrt()[:, None]
        left += float(torch.linalg.svdvals(rows)[1:].square().sum())
    assert found == pytest.approx(left, rel=1e-9)


def test_heads_without_weights_give_one_without() -> None:
    heads = randn(3, WIDTH, COLUMNS)
    heads[1] = 0
    for how, pairs in product(["aligned", "shared"], [PAIRS, ()]):
        shared, turns = merged(heads, weights(3), how, pairs, () if pairs else ALL)
        assert shared.isfinite().all() and turns.isfinite().all()
    assert not merged(0 * heads + 0, weights(3), "shared", (), ALL)[0].any()


def test_the_loss_is_that_of_the_merged_heads() -> None:
    heads, weight = randn(3, WIDTH, COLUMNS), weights(3)
    found = float(merge_loss(heads, weight, "shared", PAIRS, ()))
    assert found == pytest.approx(lost(heads, weight, *merged(heads, weight, "shared", PAIRS, ())))


def test_neighbours_are_those_that_lose_least() -> None:
    """Against all orders of six heads, in threes and in twos; heads that lose nothing anywhere stay where they are."""
    upper = randn(6, 6).square().triu(1)
    losses = upper + upper.T
    for groups in (2, 3):
        order = neighbours(losses, groups)
        assert sorted(order.tolist()) == list(range(6))
        totals = [total(losses, each, groups) for each in permutations(range(6))]
        assert total(losses, order.tolist(), groups) <= sorted(totals)[len(totals) // 20]
        assert total(losses, order.tolist(), groups) <= total(losses, range(6), groups)
    assert neighbours(0 * losses, 3).tolist() == list(range(6))
    paired = (torch.arange(6)[:, None] % 3 != torch.arange(6) % 3).double()
    assert total(paired, neighbours(paired, 3).tolist(), 3) == 0


def total(losses: Tensor, order: Sequence[int], groups: int) -> float:
    parts = torch.tensor(order).view(groups, -1)
    return float(sum(losses[part][:, part].sum() for part in parts))


def test_effort_grows_with_heads() -> None:
    assert merge_effort(8, 64, 512).flops > merge_effort(2, 64, 512).flops > 0
