"""Tuning against least squares, brute force, and the solver that it starts from; all in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.kernels.measure.error import output_energy
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.qtensor import NumberFormat, QTensor
from compress.kernels.solve.gptq import gptq_solve
from compress.kernels.solve.tune import fit_scales, revisit_codes, tune

FORMATS = [
    IntFormat(4, 16),
    IntFormat(3, -1),
    IntFormat(4, 16, "integer"),
    IntFormat(4, 16, "real"),
    CodebookFormat("nf4", 16),
]


def problem(rows: int = 12, columns: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated inputs of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator) ** 3
    x = torch.randn(4 * columns, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator) * 0.05, x.T @ x


def error(weight: Tensor, hessian: Tensor, quantized: QTensor) -> float:
    return output_energy(weight - quantized.dequantize(), hessian)


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
def test_it_goes_on_where_gptq_ends(number_format: NumberFormat) -> None:
    weight, hessian = problem()
    solved, _ = gptq_solve(weight, hessian, number_format)
    assert error(weight, hessian, tune(weight, hessian, solved)) < 0.97 * error(weight, hessian, solved)


@given(st.integers(0, 1000), st.sampled_from(FORMATS))
@settings(max_examples=30, deadline=None)
def test_no_step_loses(seed: int, number_format: NumberFormat) -> None:
    weight, hessian = problem(rows=3, seed=seed)
    quantized, _ = gptq_solve(weight, hessian, number_format)
    for step in (fit_scales, revisit_codes):
        after = step(weight, hessian, quantized)
        assert error(weight, hessian, after) <= error(weight, hessian, quantized) * (1 + 1e-5)
        quantized = after


def test_scales_are_the_least_squares_solution() -> None:
    weight, hessian = problem(rows=4)
    quantized, _ = gptq_solve(weight, hessian, IntFormat(4, 16))
    found = fit_scales(weight, hessian, quantized).params["scale"].double()
    root = torch.linalg.cholesky(hessian.double()).T
    for row in range(4):
        centred = quantized.codes[row].double() - 8
        basis = torch.zeros(4, 64, dtype=torch.float64)
        for group in range(4):
            basis[group, 16 * group : 16 * group + 16] = centred[16 * group : 16 * group + 16]
        best = torch.linalg.lstsq(root @ basis.T, (root @ weight[row].double()).unsqueeze(1)).solution[:, 0]
        assert torch.allclose(found[row], best, rtol=5e-3)  # float16, and a ridge of 1e-4


@pytest.mark.parametrize("number_format", [KAffineFormat("q4_k"), KScaledFormat("q6_k")], ids=lambda f: f.name)
def test_the_float16_scales_of_k_quants_are_the_least_squares_solution(number_format: NumberFormat) -> None:
    """By the normal equations of each row, its values written out from the stored parameters."""
    weight, hessian = problem(rows=3, columns=512)
    quantized = number_format.search(weight)
    levers = number_format.levers
    found = fit_scales(weight, hessian, quantized).params
    for row in range(3):
        lines = []
        for lever in levers:
            for block in range(2):
                params = {**quantized.params, **{name: torch.zeros_like(quantized.params[name]) for name in levers}}
                params[lever][row, block] = 1
                lines.append(replace(quantized, params=params).dequantize()[row].double())
        basis, h = torch.stack(lines), hessian.double()
        best = torch.linalg.solve(basis @ h @ basis.T, basis @ h @ weight[row].double())
        ours = torch.cat([found[lever][row] for lever in levers]).double()
        torch.testing.assert_close(ours, best, rtol=5e-3, atol=0)
    assert error(weight, hessian, replace(quantized, params=found)) < error(weight, hessian, quantized)


def test_no_single_code_is_left_to_improve() -> None:
    weight, hessian = problem(rows=2, columns=32)
    quantized, _ = gptq_solve(weight, hessian, IntFormat(3, 16))
    while not torch.equal((after := revisit_codes(weight, hessian, quantized)).codes, quantized.codes):
        quantized = after
    best = error(weight.double(), hessian.double(), quantized)
    for row in range(2):
        for column in range(32):
            for code in range(8):
                codes = quantized.codes.clone()
                codes[row, column] = code
                assert error(weight.double(), hessian.double(), replace(quantized, codes=codes)) >= best * (1 - 1e-6)


def test_dead_inputs_change_nothing() -> None:
    weight, _ = problem()
    quantized, _ = gptq_solve(weight, torch.zeros(64, 64), IntFormat(4, 16))
    assert tune(weight, torch.zeros(64, 64), quantized) is quantized


def test_what_is_not_kept_stays_zero_and_the_rest_gets_better() -> None:
    weight, hessian = problem()
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    start, _ = gptq_solve(weight, hessian, IntFormat(4, 16), kept=kept)
    tuned = tune(weight, hessian, start, kept=kept)
    assert bool((tuned.dequantize()[~kept] == 0).all())
    assert error(weight, hessian, tuned) < error(weight, hessian, start)
