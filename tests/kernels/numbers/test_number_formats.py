"""What holds for every number format there is: found by class, not by a list."""

import inspect
import math
from dataclasses import fields
from itertools import product
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.kernels.numbers import number_formats
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.qtensor import QTensor, quantize

NUMBERS = {"bits": (2, 4, 8), "group_size": (16, -1), "block_size": (32,)}
COLUMNS = 256


def formats():
    """Every number format of kernels/, with every choice of its fields (numbers: those above)."""
    found = []
    for kind in number_formats():
        if not inspect.isabstract(kind):
            hints = get_type_hints(kind)
            choices = [_choices(hints[field.name], field.name) for field in fields(kind)]
            found += [kind(*values) for values in product(*choices)]
    return [made for made in found if made.misfit((6, COLUMNS)) is None]


def _choices(hint, name):
    if hint is bool:
        return (False, True)
    if get_origin(hint) is Literal:
        return get_args(hint)
    return NUMBERS[name]


FORMATS = formats()
by_name = pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)


def weights(seed=0, rows=6, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    shape = torch.randn(rows, 1, generator=generator).mul(spread).exp()
    return torch.randn(rows, COLUMNS, generator=generator) * shape * 0.05


def errors(weight, number_format, importance, params):
    difference = weight.double() - quantize(weight, number_format, params).dequantize().double()
    return difference.square() * importance.double()


def test_all_are_found():
    assert {type(made).__name__ for made in FORMATS} >= {"IntFormat", "FloatFormat", "Float4Format"}
    assert len({made.name for made in FORMATS}) == len(FORMATS)


@by_name
def test_every_code_is_the_nearest_to_its_own_value(number_format):
    """Rounding what a code stands for gives a code that stands for the same; two codes may never be chosen."""
    params, lost = number_format.fit(weights()), 0
    for start in range(0, number_format.levels, COLUMNS):
        codes = torch.arange(start, start + COLUMNS).clamp(max=number_format.levels - 1).byte().repeat(6, 1)
        values = QTensor(number_format, codes, params).dequantize()
        back = quantize(values.nan_to_num(), number_format, params).dequantize()
        lost += int((back != values)[0].sum())
    assert lost <= (2 if number_format.levels == 256 else 0)


@by_name
def test_projection_is_idempotent_and_goes_to_the_nearest_value(number_format):
    weight = weights(1)
    for params in (number_format.fit(weight), number_format.fit(weight, torch.rand(COLUMNS))):
        quantized = quantize(weight, number_format, params)
        values = quantized.dequantize()
        assert int(quantized.codes.max()) < number_format.levels and bool(values.isfinite().all())
        assert torch.equal(quantize(values, number_format, params).dequantize(), values)
        best = torch.full_like(weight, torch.inf)
        unused = isinstance(number_format, RowInt8Format)  # bitsandbytes never writes −128, its code 0
        for code in range(int(unused), number_format.levels):
            every = QTensor(number_format, torch.full_like(quantized.codes, code), params).dequantize()
            best = torch.minimum(best, (every - weight).abs().nan_to_num(torch.inf))
        torch.testing.assert_close((values - weight).abs(), best, rtol=1e-4, atol=1e-7)


@by_name
def test_parameters_are_as_promised(number_format):
    weight = weights(2)
    for params in (number_format.fit(weight), number_format.fit(weight, torch.ones(COLUMNS))):
        promised = number_format.param_shapes((6, COLUMNS))
        assert {name: (tuple(p.shape), str(p.dtype)) for name, p in params.items()} == {
            name: (shape, f"torch.{dtype}") for name, (shape, dtype) in promised.items()
        }
        for value in number_format.expand(params, (6, COLUMNS)).values():
            assert value.shape == (6, COLUMNS) and value.dtype == torch.float32
    assert 0 < number_format.bits_per_weight((6, COLUMNS)) < 64


def between_scales(number_format, importance):
    """What three levels may lose of the scale that was found: weights of 1e-6 · 0.05 lie at float16's least step."""
    return 6 * float(importance.sum()) * 2.0**-50 if number_format.levels == 3 else 0.0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(FORMATS), st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e3]), st.sampled_from([1, 4, 16]))
@example(next(f for f in FORMATS if f.name == "tq1_0"), 110, 1.0, 16)  # where means of |w| lead to more error than none
def test_importance_never_raises_the_weighted_error(number_format, seed, size, power):
    weight = weights(seed) * size
    importance = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(seed)) ** power
    plain = errors(weight, number_format, importance, number_format.fit(weight))
    searched = errors(weight, number_format, importance, number_format.fit(weight, importance))
    assert float(searched.sum()) <= float(plain.sum()) * (1 + 1e-4) + between_scales(number_format, importance)


@by_name
def test_rows_that_stand_apart_do(number_format):
    """Where `rows_apart` is said, the parameters of a row may be cut out, and give the same values."""
    weight = weights(3)
    quantized = quantize(weight, number_format, number_format.fit(weight))
    if number_format.rows_apart:
        assert torch.equal(quantized.rows(slice(2, 5)).dequantize(), quantized.dequantize()[2:5])


@by_name
def test_rows_times_factors(number_format):
    weight, factors = weights(4), torch.linspace(0.5, 2, 6)
    quantized = quantize(weight, number_format, number_format.fit(weight))
    scaled = quantized.times_rows(factors)
    if scaled is not None:
        expected = quantized.dequantize() * factors.unsqueeze(1)
        stored = [torch.finfo(value.dtype).eps for value in quantized.params.values() if value.is_floating_point()]
        step = 2 * max([1e-3, *stored])
        torch.testing.assert_close(scaled.dequantize(), expected, rtol=step, atol=step * float(expected.abs().max()))


def same(params, others):
    return params.keys() == others.keys() and all(torch.equal(params[name], others[name]) for name in params)


@by_name
def test_reals_are_stored_where_they_are(number_format):
    """What has not moved comes back bit for bit, whatever the size of the weight; `spread` with it is `expand`."""
    for size in (1e-12, 1e-4, 1.0, 1e3):
        weight = weights(5) * size
        weight[0] = 0
        for params in (number_format.fit(weight), number_format.fit(weight, torch.rand(COLUMNS))):
            reals = number_format.reals(params)
            assert reals and all(real.dtype == torch.float32 for real in reals.values())
            assert same(number_format.stored(params, reals), params)
            spread = number_format.spread(params, reals, (6, COLUMNS))
            assert same(spread, number_format.expand(params, (6, COLUMNS)))


@by_name
def test_reals_that_moved_are_stored_as_near_as_their_type_allows(number_format):
    """A half is within 2^-11, an E4M3 number within 2^-4, a power of two within √2; a nested scale by its block."""
    params = number_format.fit(weights(6))
    before = number_format.reals(params)
    step = 1 + 0.2 * torch.rand(6, 1, generator=torch.Generator().manual_seed(6))
    moved = {name: real * step for name, real in before.items()}
    after = number_format.reals(number_format.stored(params, moved))
    off = {"mxfp4": 2**0.5 - 1, "nvfp4": 2**-4, "double": 0.03}
    near = next((share for part, share in off.items() if part in number_format.name), 2**-8)
    for name, real in moved.items():
        torch.testing.assert_close(after[name], real, rtol=near * 1.01, atol=near * float(real.abs().max()) / 30)
        assert not torch.equal(after[name], before[name]) or "mxfp4" in number_format.name


@by_name
@pytest.mark.parametrize("factor", [-1.0, 0.0, -0.0, -1e30, 1e30, math.inf, -math.inf, 1e-30])
def test_no_real_leaves_its_side_of_zero_or_what_is_finite(number_format, factor):
    params = number_format.fit(weights(7))
    before = number_format.reals(params)
    after = number_format.stored(params, {name: real * factor for name, real in before.items()})
    assert {name: (value.shape, value.dtype) for name, value in after.items()} == {
        name: (value.shape, value.dtype) for name, value in params.items()
    }
    for name, real in number_format.reals(after).items():
        assert bool(real.isfinite().all())
        if name == "scale" and "double" not in number_format.name:  # nested scales are as near to zero as steps allow
            assert torch.equal(real.sign(), before["scale"].sign())
    assert not number_format.value(torch.ones(6, COLUMNS), number_format.expand(after, (6, COLUMNS))).isnan().any()


@by_name
def test_values_are_linear_in_the_reals(number_format):
    """Gradients of training rest on it: the scale, and the minimum beside it, are all that values are made of."""
    params = number_format.fit(weights(8))
    codes = torch.randint(1, min(number_format.levels, 127), (6, COLUMNS)).double()
    reals = {name: real.double().requires_grad_() for name, real in number_format.reals(params).items()}

    def values(*moved):
        return number_format.value(codes, number_format.spread(params, dict(zip(reals, moved)), (6, COLUMNS)))

    assert torch.autograd.gradcheck(values, tuple(reals.values()), fast_mode=True)
    spread = number_format.spread(params, reals, (6, COLUMNS))
    assert {name for name, value in spread.items() if value.requires_grad} == set(reals) <= {"scale", "minimum"}


@by_name
def test_the_ends_are_the_outermost_values(number_format):
    low, high = number_format.ends
    params = number_format.fit(weights(9))
    far = torch.full((6, COLUMNS), 1e9)
    sign = number_format.expand(params, (6, COLUMNS))["scale"].sign()
    assert (quantize(far * sign, number_format, params).codes == high).all()
    assert (quantize(-far * sign, number_format, params).codes == low).all()


@pytest.mark.parametrize(
    ("number_format", "step"),
    [(IntFormat(4, 16, "integer"), 1), (CodebookFormat("nf4"), 2 / 15), (Float4Format("mxfp4"), 12 / 15)],
    ids=str,
)
def test_a_step_is_the_mean_distance_of_values(number_format, step):
    assert number_format.step == pytest.approx(step)


@pytest.mark.parametrize("zero", ["middle", "integer", "real"])
@pytest.mark.parametrize("bits", range(3, 9))
def test_a_uniform_grid_errs_by_a_twelfth_of_the_squared_step(bits, zero):
    """E(w − ŵ)² = s²/12 over a range that is filled evenly, to three standard errors."""
    number_format = IntFormat(bits, -1, zero)
    weight = torch.rand(8, 4096, generator=torch.Generator().manual_seed(bits)) * 2 - 1
    params = number_format.fit(weight)
    step = params["scale"].float().abs()
    inside = weight.abs() < 1 - step  # beyond the outermost value errors are larger, or smaller
    ratio = ((weight - quantize(weight, number_format, params).dequantize()) / step).square()[inside] * 12
    sampling = 3 * math.sqrt(0.8 / ratio.numel())  # the variance of 12·u², u uniform over one step, is 0.8
    assert float(ratio.mean()) == pytest.approx(1, abs=sampling + 2 ** (bits - 11))  # scales are float16


def test_a_bit_is_worth_six_decibels():
    """SQNR = 6.02·b + 1.76 dB for a sine over the full range, so 6.02 dB more a bit."""
    sine = torch.sin(torch.linspace(0, 2000, 1 << 16)).view(1, -1)
    noise = []
    for bits in range(3, 9):
        number_format = IntFormat(bits, -1, "real")
        values = quantize(sine, number_format, number_format.fit(sine)).dequantize()
        noise.append(10 * math.log10(float(sine.square().sum() / (sine - values).square().sum())))
    # The formula's step is range / 2^b; a grid that reaches both ends has range / (2^b − 1).
    for bits, found in list(zip(range(3, 9), noise))[2:]:  # it holds for fine steps
        assert found == pytest.approx(6.02 * bits + 1.76 + 20 * math.log10(1 - 2.0**-bits), abs=0.35)
    assert (noise[-1] - noise[2]) / 3 == pytest.approx(6.02, abs=0.15)


@by_name
def test_a_format_that_says_so_holds_zero_exactly(number_format):
    """Whatever the parameters; and one that does not say so misses it with some."""
    weight = weights() + 0.05
    weight[:, ::3] = 0
    values = quantize(weight, number_format, number_format.fit(weight)).dequantize()
    assert bool((values[:, ::3] == 0).all()) == number_format.holds_zero
