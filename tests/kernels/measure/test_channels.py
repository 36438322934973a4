"""Which channels can go: costs against brute force in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.kernels.measure.channels import cheapest, cheapest_effort, energies, factor, magnitudes


def problem(rows: int = 7, columns: int = 13, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and the second moments of inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    inputs = torch.randn(200, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return weight, inputs.T @ inputs


def loss_without(weight: Tensor, hessian: Tensor, gone: list[int], damp: float) -> float:
    """min over the other columns of tr(E·(H + λI)·Eᵀ), by the normal equations in fp64."""
    h = hessian.double()
    h = h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    kept = [column for column in range(len(h)) if column not in gone]
    solved = torch.zeros_like(weight, dtype=torch.float64)
    solved[:, kept] = torch.linalg.solve(h[kept][:, kept], (weight.double() @ h[:, kept]).T).T
    error = weight.double() - solved
    return float((error @ h * error).sum())


@pytest.mark.parametrize("damp", [1e-4, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_each_removal_is_the_one_that_brute_force_finds(seed: int, damp: float) -> None:
    weight, hessian = problem(seed=seed)
    order, costs = cheapest(weight, hessian, 9, damp)
    gone, before = list[int](), 0.0
    for column, cost in zip(order.tolist(), costs.tolist()):
        losses = {at: loss_without(weight, hessian, [*gone, at], damp) for at in range(13) if at not in gone}
        assert column == min(losses, key=losses.__getitem__)
        gone.append(column)
        assert cost == pytest.approx(losses[column] - before, rel=2e-3, abs=1e-4 * losses[column])
        before = losses[column]


def test_of_two_channels_that_stand_in_for_each_other_one_stays() -> None:
    weight, _ = problem()
    inputs = torch.randn(400, 13, generator=torch.Generator().manual_seed(1))
    inputs[:, 5] = 2 * inputs[:, 3]
    order, costs = cheapest(weight, inputs.T @ inputs, 2, 1e-5)
    assert len({3, 5}.intersection(order.tolist())) == 1 and order[0] in (3, 5)
    assert costs[0] < 1e-2 * costs[1]


def test_dead_inputs_and_zero_weights_go_first() -> None:
    weight, hessian = problem()
    weight[:, 4] = 0
    hessian[7] = hessian[:, 7] = 0
    order, costs = cheapest(weight, hessian, 3)
    assert set(order[:2].tolist()) == {4, 7} and costs[1] < costs[2]


def test_nothing_was_seen() -> None:
    weight, _ = problem()
    order, _ = cheapest(weight, torch.zeros(13, 13), 5)
    assert order.tolist() == weight.square().sum(0).sort().indices[:5].tolist()


def test_scores_count_every_weight_of_a_channel_and_what_a_column_gives_alone() -> None:
    weight, hessian = problem()
    ups = [torch.randn(13, 4), torch.randn(13, 4)]
    for channel in range(13):
        total = sum(abs(float(w)) for part in (weight[:, channel], *(up[channel] for up in ups)) for w in part)
        assert float(magnitudes(weight, *ups)[channel]) == pytest.approx(total, rel=1e-5)
        alone = torch.zeros_like(weight).index_copy(1, torch.tensor([channel]), weight[:, [channel]])
        assert float(energies(weight, hessian)[channel]) == pytest.approx(float((alone @ hessian * alone).sum()), 1e-5)


def test_a_matrix_that_is_not_definite_is_damped_until_it_is() -> None:
    hessian = torch.tensor([[1.0, 1.5], [1.5, 1.0]])
    lower = factor(hessian, 0.01)
    found = lower @ lower.T - hessian
    torch.testing.assert_close(found, torch.eye(2), rtol=1e-5, atol=1e-5)
    hopeless = torch.tensor([[1.0, 1e9], [1e9, 1.0]])
    torch.testing.assert_close(factor(hopeless, 0.01), 1.01**0.5 * torch.eye(2))


def test_effort_grows_with_what_is_removed() -> None:
    assert cheapest_effort((8, 64), 32).elements > 2 * cheapest_effort((8, 64), 8).elements
