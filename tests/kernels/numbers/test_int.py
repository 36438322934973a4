"""Integer grids: textbook formulas, exactness of what is stored, and the weighted search."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize as quantize_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize
from compress.kernels.search.integers import extreme_params

ZEROS = ("middle", "integer", "real")
FORMATS = [IntFormat(bits, size, zero) for bits, size, zero in product((2, 3, 4, 5, 8), (16, -1), ZEROS)]


def weights(rows=7, columns=64, seed=0, skew=0.3):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) + skew) * 0.05


def weighted_error(weight, quantized, importance):
    return ((weight - quantized.dequantize()).square() * importance).sum(1)


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
def test_every_code_decodes_by_the_formula_of_the_docstring(number_format):
    rows, columns = 3, 2**number_format.bits
    groups = 1 if number_format.group_size == -1 else math.ceil(columns / 16)
    columns = max(columns, 16 * groups)
    codes = torch.arange(columns).remainder(number_format.levels).byte().repeat(rows, 1)
    scale = torch.tensor([0.5, -0.25, 3.0]).half().view(3, 1).repeat(1, groups)
    zero = torch.tensor([1, 2, number_format.levels - 1]).byte().view(3, 1).repeat(1, groups)
    minimum = torch.tensor([-1.5, 0.1, 7]).half().view(3, 1).repeat(1, groups)
    extra = {"middle": {}, "integer": {"zero": zero}, "real": {"minimum": minimum}}[number_format.zero]
    values = QTensor(number_format, codes, {"scale": scale, **extra}).dequantize()
    for row in range(rows):
        for column in range(columns):
            s, q = float(scale[row, 0]), int(codes[row, column])
            expected = {
                "middle": s * (q - 2 ** (number_format.bits - 1)),
                "integer": s * (q - int(zero[row, 0])),
                "real": s * q + float(minimum[row, 0]),
            }[number_format.zero]
            assert float(values[row, column]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
def test_plain_fit_is_the_textbook_formula_rounded_to_float16(number_format):
    weight, top = weights(), number_format.levels - 1
    params = number_format.fit(weight)
    size = 64 if number_format.group_size == -1 else 16
    for row, group in product(range(7), range(64 // size)):
        values = weight[row, group * size : (group + 1) * size].double()
        low, high = float(values.min()), float(values.max())
        if number_format.zero == "middle":
            scale = -(high if high > -low else low) / (number_format.levels / 2)
        else:
            low = low if number_format.zero == "real" else min(low, 0.0)
            scale = (high - low) / top
        stored = {name: float(value[row, group]) for name, value in params.items()}
        found = abs(stored["scale"]) if number_format.zero == "integer" else stored["scale"]
        assert found == pytest.approx(scale, rel=2**-10)
        if number_format.zero == "real":
            assert stored["minimum"] == pytest.approx(low, rel=2**-10)
        if number_format.zero == "integer":
            offset = round(-low / scale)
            assert stored["zero"] == (offset or top) and (stored["scale"] < 0) == (offset == 0)


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
def test_params_have_the_promised_shapes_and_dtypes(number_format):
    weight = weights()
    for params in (number_format.fit(weight), number_format.fit(weight, torch.rand(64))):
        promised = number_format.param_shapes((7, 64))
        assert {name: (tuple(p.shape), str(p.dtype)) for name, p in params.items()} == {
            name: (shape, f"torch.{dtype}") for name, (shape, dtype) in promised.items()
        }


@pytest.mark.parametrize("zero", ZEROS)
def test_rounding_error_is_uniform(zero):
    """Within the range the error of a fine grid is uniform over a step: its mean square is s²/12."""
    number_format = IntFormat(8, 64, zero)
    weight = torch.rand(256, 256, generator=torch.Generator().manual_seed(1)) - 0.5
    quantized = quantize(weight, number_format, number_format.fit(weight))
    step = quantized.params["scale"].float().repeat_interleave(64, 1)
    ratio = ((weight - quantized.dequantize()) / step).square().mean() * 12
    assert float(ratio) == pytest.approx(1, abs=0.05)  # the extreme values have no error


@pytest.mark.parametrize("importance", [None, torch.linspace(0, 3, 64)])
@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
def test_rounding_takes_the_nearest_value_and_is_idempotent(number_format, importance):
    weight = weights()
    params = number_format.fit(weight, importance)
    quantized = quantize(weight, number_format, params)
    values = quantized.dequantize()
    every = torch.stack(
        [
            QTensor(number_format, torch.full((7, 64), code, dtype=torch.uint8), params).dequantize()
            for code in range(number_format.levels)
        ]
    )
    nearest = (every - weight).abs().amin(0)
    torch.testing.assert_close((values - weight).abs(), nearest, rtol=1e-4, atol=1e-7)
    again = quantize(values, number_format, params)
    assert torch.equal(again.dequantize(), values)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.integers(0, 1000),
    st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 1e3]),
    st.floats(-3, 3),
    st.sampled_from([0.0, 1e-12, 1.0, 1e12]),
)
def test_importance_never_costs_weighted_error(number_format, seed, size, skew, weight_of_importance):
    weight = weights(5, 64, seed, skew) * size
    importance = torch.rand(64, generator=torch.Generator().manual_seed(seed)) ** 4 * weight_of_importance
    plain = quantize(weight, number_format, number_format.fit(weight))
    searched = quantize(weight, number_format, number_format.fit(weight, importance))
    before, after = (weighted_error(weight.double(), q, importance.double()) for q in (plain, searched))
    assert bool((after <= before * (1 + 1e-4)).all())


@pytest.mark.parametrize("zero", ZEROS)
def test_the_search_comes_close_to_an_exhaustive_one(zero):
    """Against every scale of a fine sweep (and every zero point): within 5 % of the least weighted error."""
    number_format = IntFormat(3, -1, zero)
    weight = weights(12, 32, seed=3)
    importance = torch.rand(32, generator=torch.Generator().manual_seed(0)) ** 2 + 0.05
    found = quantize(weight, number_format, number_format.fit(weight, importance))
    span = weight.abs().amax(1, keepdim=True) * 2 / 7
    least = torch.full((12,), torch.inf)
    offsets = {"middle": [{}], "integer": [{"zero": torch.full((12, 1), float(z))} for z in range(1, 8)]}
    offsets["real"] = [{"minimum": span * part} for part in torch.linspace(-4, 1, 40).tolist()]
    for factor, extra in product(torch.linspace(-1.3, 1.3, 131).tolist(), offsets[zero]):
        params = {"scale": span * (factor or 1.0), **extra}
        least = torch.minimum(least, weighted_error(weight, quantize(weight, number_format, params), importance))
    assert float(weighted_error(weight, found, importance).sum()) < 1.05 * float(least.sum())


def test_a_grid_turns_its_longer_side_to_the_weights_that_matter():
    weight = torch.tensor([[8.0, 3, -2, -7], [-8.0, -3, 2, 7]])
    params = IntFormat(4, -1).fit(weight, torch.ones(4))
    assert params["scale"].flatten().tolist() == [-1, 1]
    assert torch.equal(quantize(weight, IntFormat(4, -1), params).dequantize(), weight)


def test_the_largest_weight_of_a_middle_group_is_exact():
    """Scales are those of gguf-py's Q4_0, and err less than those of GPTQ's reference code."""
    weight = weights(40, seed=5)
    number_format = IntFormat(4, 32)
    params = number_format.fit(weight)
    blocks = quantize_gguf(weight.numpy(), GGMLQuantizationType.Q4_0).reshape(40, 2, 18)
    assert torch.equal(params["scale"], torch.from_numpy(blocks[..., :2].copy().view(np.float16)).squeeze(-1))
    largest = weight.view(40, 2, 32).gather(-1, weight.view(40, 2, 32).abs().argmax(-1, keepdim=True)).squeeze(-1)
    assert torch.equal(params["scale"], (largest / -8).half())
    tie = {"scale": (largest.abs() / 7.5).half()}
    assert squared_error(weight, number_format, params) < 0.92 * squared_error(weight, number_format, tie)


def squared_error(weight, number_format, params):
    return float((quantize(weight, number_format, params).dequantize() - weight).square().sum())


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("searched", [False, True])
def test_degenerate_groups_keep_a_usable_scale(number_format, searched):
    weight = weights(6)
    weight[0] = 0
    weight[1] = 0.25
    weight[2] = 1e-30
    weight[3] = -1e-9
    weight[4, 1:] = 0
    importance = torch.ones(64) if searched else None
    params = number_format.fit(weight, importance)
    assert bool(params["scale"].isfinite().all()) and bool((params["scale"] != 0).all())
    values = quantize(weight, number_format, params).dequantize()
    assert bool((values[0] == 0).all())
    half_a_step = params["scale"].float().abs().repeat_interleave(64 // params["scale"].shape[1], 1) / 2
    assert bool(((values - weight)[:5].abs() <= half_a_step[:5] * 1.01).all())


def test_dead_importance_falls_back_to_the_extreme_values():
    weight = weights()
    for number_format in FORMATS:
        plain, searched = number_format.fit(weight), number_format.fit(weight, torch.zeros(64))
        assert all(torch.equal(plain[name], searched[name]) for name in plain)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_a_number_is_refused(value):
    weight = weights()
    weight[3, 5] = value
    with pytest.raises(ValueError, match="NaN or Inf"):
        IntFormat(4, 16).fit(weight)


@pytest.mark.parametrize("importance", [None, torch.ones(64)])
def test_scales_beyond_float16_are_refused(importance):
    with pytest.raises(ValueError, match="float16 cannot hold"):
        IntFormat(4, 16).fit(weights() * 1e8, importance)


@pytest.mark.parametrize(
    "shape, size, fits", [((3, 128), 64, True), ((3, 96), 64, False), ((3, 96), -1, True), ((96,), 32, False)]
)
def test_misfit(shape, size, fits):
    reason = IntFormat(4, size).misfit(shape)
    assert (reason is None) == fits
    if shape == (3, 96) and not fits:
        assert "group sizes that work: 16, 32, -1" in reason


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="96 columns do not divide into groups of 64"):
        IntFormat(4, 64).fit(torch.ones(2, 96))


@pytest.mark.parametrize("arguments", [(1, 64), (9, 64), (4, 0), (4, -2), (4, 64, "none")])
def test_formats_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError):
        IntFormat(*arguments)


def test_bits_per_weight_count_the_parameters():
    assert IntFormat(4, 32).bits_per_weight((8, 64)) == 4.5
    assert IntFormat(4, 32, "integer").bits_per_weight((8, 64)) == 4 + 20 / 32
    assert IntFormat(4, 32, "real").bits_per_weight((8, 64)) == 5
    assert IntFormat(3, -1).bits_per_weight((8, 64)) == 3.25
    assert IntFormat(4, 32, scale_dtype="bfloat16").bits_per_weight((8, 64)) == 4.5
    assert IntFormat(4, 32, "real", "float32").bits_per_weight((8, 64)) == 6


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_scales_are_rounded_to_their_type(dtype, zero):
    number_format, weight = IntFormat(4, 16, zero, dtype), weights()
    params, exact = number_format.fit(weight), extreme_params(weight.view(7, 4, 16), 16, zero)
    assert {name: (tuple(value.shape), str(value.dtype)[6:]) for name, value in params.items()} == (
        number_format.param_shapes((7, 64))
    )
    assert torch.equal(params["scale"], exact["scale"].to(getattr(torch, dtype)))
    searched = number_format.fit(weight, torch.rand(64, generator=torch.Generator().manual_seed(1)))
    assert searched["scale"].dtype == params["scale"].dtype
    halved = number_format.times_rows(params, torch.full((7,), 0.5))
    assert all(halved[name].dtype == params[name].dtype for name in params)
    assert torch.equal(halved["scale"], params["scale"] / 2)
    assert quantize(torch.zeros(2, 16), number_format, number_format.fit(torch.zeros(2, 16))).dequantize().eq(0).all()


def test_only_other_scales_than_float16_are_named():
    assert IntFormat(4, 32).name == "int4 g32 sym"
    assert IntFormat(4, 32, scale_dtype="bfloat16").name == "int4 g32 sym, bfloat16 scales"
    with pytest.raises(ValueError, match="float64"):
        IntFormat(4, 32, scale_dtype="float64")


def test_a_wider_scale_reaches_further():
    weight = torch.full((1, 16), 1e7)
    with pytest.raises(ValueError, match="float16 cannot hold"):
        IntFormat(4, 16).fit(weight)
    assert float(IntFormat(4, 16, scale_dtype="bfloat16").fit(weight)["scale"]) < -1e6


def test_names_and_equality():
    assert IntFormat(4, 64).name == "int4 g64 sym"
    assert IntFormat(3, -1, "integer").name == "int3 per channel asym"
    assert IntFormat(4, 64) == IntFormat(4, 64, "middle") != IntFormat(4, 64, "real")
