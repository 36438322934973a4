"""K-quants: values by hand from stored parameters, sizes as GGUF has them, solvers on them."""

import pytest
import torch
from hessians import problem

from compress.kernels.measure.error import output_energy
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.numbers.super_blocks import super_blocks_misfit
from compress.kernels.numbers.units import IQ4, table, whole
from compress.kernels.numbers.whole_scales import moved_minima, moved_scales, real_scales
from compress.kernels.qtensor import QTensor, quantize
from compress.kernels.solve.gptq import gptq_solve
from compress.kernels.solve.tune import tune

AFFINE = [KAffineFormat(kind) for kind in ("q2_k", "q4_k", "q5_k")]
SCALED = [KScaledFormat(kind) for kind in ("q3_k", "q6_k", "iq4_xs")]
each = pytest.mark.parametrize("number_format", [*AFFINE, *SCALED], ids=lambda f: f.name)
# Bytes of a block of 256 in GGUF.
SIZES = {"q2_k": 84, "q3_k": 110, "q4_k": 144, "q5_k": 176, "q6_k": 210, "iq4_xs": 136}
GROUPS = {"q2_k": 16, "q3_k": 16, "q4_k": 32, "q5_k": 32, "q6_k": 16, "iq4_xs": 32}
UNITS = {"q3_k": range(-4, 4), "q6_k": range(-32, 32), "iq4_xs": IQ4}


def weights(rows=6, columns=512):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05


@each
def test_values_by_hand(number_format):
    quantized = number_format.search(weights())
    params = {name: value.double() for name, value in quantized.params.items()}
    group = GROUPS[number_format.name]
    values = quantized.dequantize()
    for row, column in [(0, 0), (2, 300), (5, 511)]:
        code = int(quantized.codes[row, column])
        scale = params["d"][row, column // 256] * params["scale"][row, column // group]
        expected = scale * UNITS.get(number_format.name, range(64))[code]
        if number_format in AFFINE:
            expected -= params["dmin"][row, column // 256] * params["minimum"][row, column // group]
        assert float(values[row, column]) == pytest.approx(float(expected), rel=1e-6)


@each
def test_sizes_and_refusals(number_format):
    assert number_format.bits_per_weight((4, 512)) * 256 / 8 == SIZES[number_format.name]
    assert number_format.groups((4, 512)) == 512 // GROUPS[number_format.name]
    assert "super-blocks of 256" in number_format.misfit((4, 576))
    assert super_blocks_misfit("q4_k", 512) is None
    with pytest.raises(ValueError, match=r"not 'q4_k'|not 'q3_k'"):
        type(number_format)("q4_k" if number_format in SCALED else "q3_k")
    with pytest.raises(ValueError, match="too large"):
        number_format.fit(torch.full((1, 256), 1e12))
    with pytest.raises(ValueError, match="NaN or Inf"):
        number_format.fit(torch.full((1, 256), torch.nan))


@each
def test_weights_on_the_grid_keep_their_values(number_format):
    once = number_format.search(weights())
    again = quantize(once.dequantize(), number_format, once.params)
    assert torch.equal(again.dequantize(), once.dequantize())


@each
def test_scales_of_zero_are_no_division_by_zero(number_format):
    quantized = number_format.search(weights())
    empty = {name: value.clone() for name, value in quantized.params.items()}
    empty["scale"][0] = 0
    empty["d"][1] = 0
    values = quantize(weights(), number_format, empty).dequantize()
    assert bool(values.isfinite().all())


@each
def test_solvers_beat_rounding(number_format):
    weight, hessian = problem(24, 512)
    plain = quantize(weight, number_format, number_format.fit(weight, hessian.diagonal()))
    solved, report = gptq_solve(weight, hessian, number_format)
    tuned = tune(weight, hessian, solved, damp=report.damp)
    errors = [output_energy(weight - found.dequantize(), hessian) for found in (plain, solved, tuned)]
    assert errors[1] < 0.65 * errors[0] and errors[2] < 0.98 * errors[1]


@each
def test_importance_moves_the_error_to_where_it_costs_less(number_format):
    weight, importance = weights(), torch.rand(512, generator=torch.Generator().manual_seed(1)) ** 6
    errors = []
    for given in (None, importance):
        values = number_format.search(weight, given).dequantize()
        errors.append(float(((values - weight).square() * importance).sum()))
    assert errors[1] < 0.9 * errors[0]


def test_units_and_their_codes():
    x = torch.tensor([-9.0, -4.4, 0.4, 0.6, 3.2, 9.0])
    assert whole(-4, 3).values(whole(-4, 3).codes(x)).tolist() == [-4, -4, 0, 1, 3, 3]
    iq4 = table(IQ4)
    nearest = torch.tensor(IQ4).sub(x.view(-1, 1)).abs().argmin(1)
    assert iq4.codes(x).tolist() == nearest.tolist() and iq4.levels == 16 and iq4.reach == 127
    assert iq4.values(torch.arange(16.0)).tolist() == list(IQ4)
    assert whole(-4, 3).multiples.nearest(x).tolist() == [-4, -4, 0, 1, 3, 3]


def test_moved_scales_are_as_near_as_whole_numbers_allow():
    d = torch.tensor([[0.25, -0.5]]).half()
    scale = torch.tensor([[10, 20, 30, 0, 5, 6, 7, -32]], dtype=torch.int8)
    real = real_scales(d, scale)
    assert real.tolist() == [[2.5, 5, 7.5, 0, -2.5, -3, -3.5, 16]]
    same = moved_scales(d, scale, real, -32, 31)
    assert torch.equal(same[0], d) and torch.equal(same[1], scale)
    larger = real_scales(*moved_scales(d, scale, real * 3, -32, 31))
    assert torch.equal(larger, real * 3)
    one = real.clone()
    one[0, 0] = -1.0  # a scale keeps its sign, if at its least
    kept = moved_scales(d, scale, one, -32, 31)
    assert kept[1][0, 0] == 1 and torch.equal(kept[1][0, 4:], scale[0, 4:]) and kept[0][0, 1] == d[0, 1]
    assert moved_minima(d[:, :1], scale[:, :4].byte(), -real[:, :4], 63)[1].tolist() == [[0, 0, 0, 0]]


def test_rows_times_factors_are_exact_for_powers_of_two():
    quantized = KAffineFormat("q4_k").search(weights())
    scaled = QTensor.times_rows(quantized, torch.full((6,), 4.0))
    assert scaled is not None and torch.equal(scaled.dequantize(), quantized.dequantize() * 4)
    assert quantized.times_rows(torch.full((6,), 1e12)) is None
