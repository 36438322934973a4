"""The solver, against the equations of GPTQ and OBQ written out column by column in float64."""

from dataclasses import dataclass

import pytest
import torch

from compress.kernels.measure.error import output_energy
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat, quantize
from compress.kernels.solve.gptq import gptq_solve


def problem(rows, columns, tokens=600, seed=0):
    """A weight and the Hessian of strongly correlated inputs of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator) ** 3
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator) * 0.05, x.T @ x


def reference(weight, hessian, damp, act_order, nearest, kept=None):
    """OBQ's update (arXiv 2210.17323, eq. 2) in GPTQ's order: an explicit inverse for every column left.

    `nearest(column, values [rows])` gives the rounded values of a column.
    """
    weight, hessian = weight.double().clone(), hessian.double()
    mean = hessian.diagonal().mean()
    damped = hessian + damp * mean * torch.eye(len(hessian), dtype=torch.float64)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else range(len(hessian))
    left = [int(column) for column in order]
    values = torch.zeros_like(weight)
    while left:
        column = left[0]
        inverse = torch.linalg.inv(damped[left][:, left])
        visited = weight[:, column] if kept is None else weight[:, column].where(kept[:, column], 0.0)
        values[:, column] = nearest(column, visited)
        error = (weight[:, column] - values[:, column]) / inverse[0, 0]
        weight[:, left] -= error[:, None] * inverse[0]
        left.pop(0)
    return values


def nearest_in(number_format, params, shape):
    """The nearest of all values that the format has for a column: no formula of the format's own is used."""
    expanded = number_format.expand(params, shape)
    codes = (torch.full(shape, float(code)) for code in range(number_format.levels))
    table = torch.stack([number_format.value(code, expanded).double() for code in codes])

    def nearest(column, values):
        candidates = table[:, :, column]
        return candidates.gather(0, (candidates - values).abs().argmin(0, keepdim=True))[0]

    return nearest


@dataclass(frozen=True)
class Codebook(NumberFormat):
    """Sixteen uneven levels per row, as NF4 has them: a format that shares nothing with integer grids."""

    levels = 16
    name = "toy codebook"

    @property
    def book(self):
        return torch.linspace(-1, 1, 16).abs().pow(1.5) * torch.linspace(-1, 1, 16).sign()

    def param_shapes(self, shape):
        return {"absmax": ((shape[0], 1), "float32")}

    def _fit(self, weight, importance):
        return {"absmax": weight.abs().amax(1, keepdim=True)}

    def spread(self, params, reals, shape):
        return {"absmax": params["absmax"].expand(-1, shape[1])}

    def round(self, weight, expanded):
        return (weight.div(expanded["absmax"]).unsqueeze(-1) - self.book).abs().argmin(-1).float()

    def value(self, codes, expanded):
        return self.book[codes.long()] * expanded["absmax"]

    def bits_per_weight(self, shape):
        return 4 + 32 / shape[1]


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(
    "number_format",
    [IntFormat(4, 16), IntFormat(3, -1), IntFormat(4, 16, "integer"), IntFormat(2, 32, "real"), Codebook()],
    ids=lambda f: f.name,
)
@pytest.mark.parametrize("rows, columns", [(1, 32), (3, 96), (123, 160)])
def test_equals_the_equations_of_the_paper(rows, columns, number_format, act_order):
    weight, hessian = problem(rows, columns)
    quantized, report = gptq_solve(weight, hessian, number_format, damp=0.01, act_order=act_order)
    nearest = nearest_in(number_format, quantized.params, weight.shape)
    expected = reference(weight, hessian, 0.01, act_order, nearest)
    torch.testing.assert_close(quantized.dequantize().double(), expected, rtol=0, atol=0)
    error = (weight.double() - expected).mul((weight.double() - expected) @ hessian.double()).sum()
    assert report.error == pytest.approx(float(error), rel=1e-3)
    assert (report.damp, report.fallback) == (0.01, False)


@pytest.mark.parametrize("number_format", [IntFormat(2, 16), IntFormat(4, 16), IntFormat(4, -1, "integer")])
def test_better_than_round_to_nearest(number_format):
    weight, hessian = problem(40, 96)
    solved, report = gptq_solve(weight, hessian, number_format)
    rounded = quantize(weight, number_format, number_format.fit(weight))
    best = quantize(weight, number_format, solved.params)
    for other in (rounded, best):
        assert report.error < 0.8 * output_energy(weight - other.dequantize(), hessian)


def test_given_params_are_kept():
    weight, hessian = problem(5, 32)
    params = IntFormat(4, 16).fit(weight)
    quantized, _ = gptq_solve(weight, hessian, IntFormat(4, 16), params=params)
    assert quantized.params is params


def test_stacking_rows_changes_nothing():
    weight, hessian = problem(123, 192)
    whole, report = gptq_solve(weight, hessian, IntFormat(4, 64))
    parts = [gptq_solve(part, hessian, IntFormat(4, 64)) for part in weight.split([60, 1, 62])]
    assert torch.equal(whole.codes, torch.cat([part.codes for part, _ in parts]))
    assert torch.equal(whole.params["scale"], torch.cat([part.params["scale"] for part, _ in parts]))
    assert report.error == pytest.approx(sum(report.error for _, report in parts), rel=1e-4)


def test_the_same_input_gives_the_same_bytes():
    weight, hessian = problem(33, 128)
    first, second = (gptq_solve(weight.clone(), hessian.clone(), IntFormat(4, 32))[0] for _ in range(2))
    assert torch.equal(first.codes, second.codes) and torch.equal(first.params["scale"], second.params["scale"])


def test_inputs_are_not_changed():
    weight, hessian = problem(3, 32)
    hessian[5] = hessian[:, 5] = 0
    before = weight.clone(), hessian.clone()
    gptq_solve(weight, hessian, IntFormat(4, 16))
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


def test_uncorrelated_inputs_give_round_to_nearest():
    weight, _ = problem(9, 64)
    params = IntFormat(4, 32).fit(weight)
    quantized, _ = gptq_solve(weight, torch.diag(torch.rand(64) + 0.1), IntFormat(4, 32), params=params)
    assert torch.equal(quantized.codes, quantize(weight, IntFormat(4, 32), params).codes)


def test_dead_columns_become_zero_and_disturb_no_other():
    weight, hessian = problem(9, 64)
    dead = torch.tensor([0, 17, 18, 63])
    hessian[dead] = hessian[:, dead] = 0
    weight[:, dead] *= 100
    quantized, report = gptq_solve(weight, hessian, IntFormat(4, 32))
    values = quantized.dequantize()
    assert bool((values[:, dead] == 0).all())
    assert (report.damp, report.fallback) == (0.01, False)
    weight[:, dead] = 0
    assert torch.equal(values, gptq_solve(weight, hessian, IntFormat(4, 32))[0].dequantize())


def test_no_live_column_at_all():
    quantized, report = gptq_solve(torch.randn(3, 32), torch.zeros(32, 32), IntFormat(4, 16))
    assert bool((quantized.dequantize() == 0).all()) and report.error == 0 and not report.fallback


def test_a_singular_hessian_climbs_the_damping_ladder():
    weight, _ = problem(9, 64)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    hessian = x.T @ x - 0.02 * torch.eye(64)  # as rounding may leave it: eigenvalues a little below zero
    _, report = gptq_solve(weight, hessian, IntFormat(4, 32), damp=1e-3)
    assert (report.damp, report.fallback) == (pytest.approx(1e-2), False)
    rounded = quantize(weight, IntFormat(4, 32), IntFormat(4, 32).fit(weight))
    assert report.error < output_energy(weight - rounded.dequantize(), hessian)


def test_a_hopeless_hessian_falls_back_to_rounding():
    weight, _ = problem(9, 64)
    hessian = torch.ones(64, 64) - 100 * torch.eye(64)
    hessian.diagonal().fill_(1e-3)
    hessian[0, 1] = hessian[1, 0] = 1e6
    params = IntFormat(4, 32).fit(weight)
    quantized, report = gptq_solve(weight, hessian, IntFormat(4, 32), params=params)
    assert report.fallback
    assert torch.equal(quantized.codes, quantize(weight, IntFormat(4, 32), params).codes)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_a_number_is_refused(value):
    weight, hessian = problem(3, 32)
    weight[1, 2] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        gptq_solve(weight, hessian, IntFormat(4, 16))
    weight, hessian = problem(3, 32)
    hessian[1, 2] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        gptq_solve(weight, hessian, IntFormat(4, 16))


@pytest.mark.parametrize("number_format", [IntFormat(4, 16), IntFormat(4, 16, "integer")], ids=lambda f: f.name)
@pytest.mark.parametrize("act_order", [True, False])
def test_what_is_not_kept_is_zero_and_the_rest_makes_up_for_it(number_format, act_order):
    weight, hessian = problem(23, 96)
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    quantized, report = gptq_solve(weight, hessian, number_format, act_order=act_order, kept=kept)
    nearest = nearest_in(number_format, quantized.params, weight.shape)
    expected = reference(weight, hessian, 0.01, act_order, nearest, kept)
    assert torch.equal(quantized.dequantize().double(), expected)
    assert bool((expected[~kept] == 0).all())
    error = (weight.double() - expected).mul((weight.double() - expected) @ hessian.double()).sum()
    assert report.error == pytest.approx(float(error), rel=1e-3)
