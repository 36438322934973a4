"""Least squares on the channels that stay, against the normal equations in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.kernels.measure.channels import cheapest
from compress.kernels.measure.error import output_energy
from compress.kernels.measure.hessian import shrunk
from compress.kernels.solve.repair import repair, repair_effort


@pytest.fixture
def seen() -> tuple[Tensor, Tensor]:
    """A weight [6, 11] and inputs [300, 11] that go together."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(11, 11, generator=generator)
    return torch.randn(6, 11, generator=generator), torch.randn(300, 11, generator=generator) @ mixing


KEPT = torch.tensor([0, 2, 3, 6, 8, 10])


def test_without_damping_it_is_the_least_squares_of_the_outputs(seen: tuple[Tensor, Tensor]) -> None:
    weight, inputs = seen
    solved = torch.linalg.lstsq(inputs[:, KEPT].double(), inputs.double() @ weight.double().T).solution.T
    torch.testing.assert_close(repair(weight, inputs.T @ inputs, KEPT, 1e-9).double(), solved, rtol=1e-3, atol=1e-3)


def test_damping_holds_it_to_what_it_was(seen: tuple[Tensor, Tensor]) -> None:
    weight, inputs = seen
    h, w = (inputs.T @ inputs).double(), weight.double()
    ridge = 0.3 * h[KEPT][:, KEPT].diagonal().mean() * torch.eye(len(KEPT), dtype=torch.float64)
    right = w @ h[:, KEPT] + w[:, KEPT] @ ridge
    solved = torch.linalg.solve(h[KEPT][:, KEPT] + ridge, right.T).T
    torch.testing.assert_close(repair(weight, inputs.T @ inputs, KEPT, 0.3).double(), solved, rtol=1e-4, atol=1e-4)


def test_its_error_is_what_the_removals_cost(seen: tuple[Tensor, Tensor]) -> None:
    weight, inputs = seen
    hessian = inputs.T @ inputs
    order, costs = cheapest(weight, hessian, 5, 1e-6)
    kept = torch.tensor([column for column in range(11) if column not in order.tolist()])
    error = weight.index_add(1, kept, repair(weight, hessian, kept, 1e-6), alpha=-1)
    assert output_energy(error, hessian) == pytest.approx(float(costs.sum()), rel=1e-3)


def test_nothing_to_make_up_for_changes_no_bit(seen: tuple[Tensor, Tensor]) -> None:
    weight, inputs = seen
    gone = [column for column in range(11) if column not in KEPT.tolist()]
    weight[:, gone] = 0
    assert torch.equal(repair(weight, inputs.T @ inputs, KEPT), weight[:, KEPT])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tokens", [200, 2000])
def test_shrunk_statistics_of_another_domain_do_no_harm(tokens: int, seed: int) -> None:
    """Two domains that have half of what goes together in common; without shrinkage the repair makes it worse."""
    generator = torch.Generator().manual_seed(seed)
    columns, loads = 96, [torch.randn(24, 96, generator=generator) for _ in range(3)]

    def draw(count: int, own: int) -> Tensor:
        factors = torch.randn(2, count, 24, generator=generator)
        return factors[0] @ loads[0] + factors[1] @ loads[own] + 3 * torch.randn(count, columns, generator=generator)

    weight, kept = torch.randn(32, columns, generator=generator), torch.arange(0, columns * 3 // 4)
    here, there = (x.T @ x for x in (draw(tokens, 1), draw(4000, 2)))

    def lost(replacement: Tensor) -> float:
        return output_energy(weight.index_add(1, kept, replacement, alpha=-1), there)

    bare = lost(weight[:, kept])
    assert lost(repair(weight, shrunk(here, 0.5), kept)) < bare
    if tokens == 200:
        assert lost(repair(weight, here, kept)) > bare


def test_effort_grows_with_what_is_kept() -> None:
    assert repair_effort((8, 64), 56).flops > repair_effort((8, 64), 16).flops > 0
