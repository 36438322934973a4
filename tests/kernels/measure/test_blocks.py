"""Which blocks of columns can go: costs against brute force in fp64, and against those of single columns."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from compress.kernels.measure.blocks import block_energies, blocks_effort, cheapest_blocks
from compress.kernels.measure.channels import cheapest, energies

SIZE, BLOCKS = 3, 5


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [7, 15], and the second moments of inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, SIZE * BLOCKS, generator=generator)
    mixing = torch.randn(SIZE * BLOCKS, SIZE * BLOCKS, generator=generator)
    inputs = torch.randn(200, SIZE * BLOCKS, generator=generator) @ mixing
    return weight, inputs.T @ inputs


def loss_without(weight: Tensor, hessian: Tensor, gone: list[int], damp: float) -> float:
    """min over the other columns of tr(E·(H + λI)·Eᵀ), by the normal equations in fp64."""
    h = hessian.double()
    h = h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    kept = [column for column in range(len(h)) if column // SIZE not in gone]
    solved = torch.zeros_like(weight, dtype=torch.float64)
    solved[:, kept] = torch.linalg.solve(h[kept][:, kept], (weight.double() @ h[:, kept]).T).T
    error = weight.double() - solved
    return float((error @ h * error).sum())


@pytest.mark.parametrize("count", [2, 3])
def test_the_set_goes_that_costs_least_together(count: int) -> None:
    """Which is not always the one that is found one by one."""
    greedy, damp = 0, 1e-3
    for seed in range(8):
        weight, hessian = problem(seed)
        order, costs = cheapest_blocks(weight, hessian, count, SIZE, damp)
        losses = {gone: loss_without(weight, hessian, list(gone), damp) for gone in combinations(range(BLOCKS), count)}
        best = min(losses, key=losses.__getitem__)
        assert sorted(order.tolist()) == list(best)
        before = 0.0
        for number, cost in enumerate(costs.tolist(), start=1):
            after = loss_without(weight, hessian, order[:number].tolist(), damp)
            assert cost == pytest.approx(after - before, rel=2e-3, abs=1e-3 * after)
            before = after
        first, _ = cheapest_blocks(weight, hessian, 1, SIZE, damp)
        greedy += int(first) in best
    assert greedy < 8


def test_blocks_of_one_column_are_columns() -> None:
    weight, hessian = problem()
    columns, blocks = cheapest(weight, hessian, 8), cheapest_blocks(weight, hessian, 8, 1)
    assert torch.equal(columns[0], blocks[0])
    torch.testing.assert_close(columns[1], blocks[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(block_energies(weight, hessian, 1), energies(weight, hessian))


def test_what_a_block_gives_alone() -> None:
    weight, hessian = problem()
    for block in range(BLOCKS):
        alone = torch.zeros_like(weight)
        own = slice(block * SIZE, (block + 1) * SIZE)
        alone[:, own] = weight[:, own]
        expected = float((alone @ hessian * alone).sum())
        assert float(block_energies(weight, hessian, SIZE)[block]) == pytest.approx(expected, 1e-5)


def test_a_block_of_no_weight_goes_first_and_for_nothing() -> None:
    weight, hessian = problem()
    weight[:, 6:9] = 0
    order, costs = cheapest_blocks(weight, hessian, 2, SIZE)
    assert order[0] == 2 and costs[0] == 0 < costs[1]


def test_effort_grows_with_what_is_removed() -> None:
    assert blocks_effort((8, 64), 6, 8).flops > blocks_effort((8, 64), 2, 8).flops > 0
