"""Error measures, against float64 formulas over explicit inputs."""

import math

import pytest
import torch

from compress.kernels.measure.error import output_energy, relative_error, sqnr


@pytest.mark.parametrize("columns", [1, 31, 256, 600])
def test_output_energy_is_the_sum_of_squared_outputs(columns):
    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(50, columns, generator=generator), torch.randn(9, columns, generator=generator)
    expected = (x.double() @ matrix.double().T).square().sum()
    assert output_energy(matrix, x.T @ x) == pytest.approx(float(expected), rel=1e-5)


def test_relative_error():
    x, weight = torch.randn(50, 8), torch.randn(3, 8)
    hessian = x.T @ x
    assert relative_error(weight, torch.zeros_like(weight), hessian) == pytest.approx(1)
    assert relative_error(weight, weight * 0.9, hessian) == pytest.approx(0.01, rel=1e-3)
    assert relative_error(weight, weight, hessian) == 0
    assert relative_error(torch.zeros(3, 8), torch.zeros(3, 8), hessian) == 0


def test_sqnr_in_decibels():
    weight = torch.tensor([[3.0, 4.0]])
    assert sqnr(weight, weight * 0.9) == pytest.approx(20, rel=1e-5)
    assert sqnr(weight, weight) == math.inf
    assert sqnr(torch.zeros(1, 2), weight) == -math.inf
