"""XᵀX and the cross statistic, against float64."""

import pytest
import torch

from compress.kernels.measure.hessian import add_cross, add_hessian, fill_lower, shrunk


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("columns", [1, 3, 123, 256, 257, 700])
@pytest.mark.parametrize("tokens", [1, 5, 8193])
def test_hessian_equals_float64(columns, tokens):
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(columns, columns)
    add_hessian(total, x)
    add_hessian(total, x[: tokens // 2])
    fill_lower(total)
    both = torch.cat([x, x[: tokens // 2]]).double()
    assert relative(total, both.T @ both) < 1e-5
    assert torch.equal(total, total.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_float32(dtype):
    """256² summed over 4096 tokens is 2.7e8: far beyond float16, and exact in float32 in any order."""
    x = torch.full((4096, 5), 256.0, dtype=dtype)
    total = torch.zeros(5, 5)
    add_hessian(total, x)
    fill_lower(total)
    assert torch.equal(total, torch.full((5, 5), float(x[0, 0]) ** 2 * 4096))


def test_strided_inputs():
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).T
    total = torch.zeros(40, 40)
    add_hessian(total, x)
    fill_lower(total)
    assert relative(total, x.double().T @ x.double()) < 1e-6


@pytest.mark.parametrize("tokens", [1, 7, 8200])
def test_cross_statistic_equals_float64(tokens):
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(tokens, 33, generator=generator)
    x = reference + 0.1 * torch.randn(tokens, 33, generator=generator)
    total = torch.ones(33, 33)
    add_cross(total, reference, x)
    expected = (reference.double() - x.double()).T @ x.double() + 1
    assert relative(total, expected) < 1e-5


def test_shrinking_keeps_the_diagonal_and_comes_nearer_to_what_more_tokens_say():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.eye(64) + 0.05 * torch.randn(64, 64, generator=generator)
    few, many = (torch.randn(tokens, 64, generator=generator) @ mixed for tokens in (96, 100_000))
    estimate, truth = few.T @ few / len(few), many.T @ many / len(many)
    assert torch.equal(shrunk(estimate, 0.0), estimate)
    assert torch.equal(shrunk(estimate, 1.0), estimate.diagonal().diag())
    assert torch.equal(shrunk(estimate, 0.3).diagonal(), estimate.diagonal())
    assert relative(shrunk(estimate, 0.3), truth.double()) < 0.8 * relative(estimate, truth.double())
