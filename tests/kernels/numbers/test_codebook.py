"""Tables of sixteen values: bitsandbytes' own codes, Max's published table, and a search that never loses."""

from itertools import product

import pytest
import torch

from compress.kernels.numbers.codebook import CodebookFormat, quantize_plainly
from compress.kernels.numbers.nested_scales import dynamic_map, nest, renest, unnest
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.numbers.tables import codebook
from compress.kernels.qtensor import QTensor, quantize

CPU = torch.device("cpu")
TABLES = ("nf4", "fp4", "quantile", "lloyd_max")
FORMATS = [CodebookFormat(table, size, double) for table, size, double in product(TABLES, (32, 64), (False, True))]
ALL = [*FORMATS, RowInt8Format()]


def weights(rows=8, columns=256, seed=0):
    """Sequences of several sizes, one of them on a coarse grid (ties), a block of zeros, a row of tiny ones."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05
    weight[3, :64] = 0
    weight[4] *= 1e-30
    weight[5] = (weight[5] * 200).round() / 64
    return weight


def weighted_error(weight, quantized, importance):
    return float(((weight - quantized.dequantize()).double().square() * importance).sum())


def names(formats):
    return [number_format.name for number_format in formats]


def test_nf4_is_the_table_of_the_paper_s_construction():
    """QLoRA, section 3: quantiles of both halves, 2^3 negative and 2^3 + 1 positive, one zero of the two dropped."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    positive = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64))[:-1]
    negative = torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64))[:-1]
    values = torch.cat([-negative, torch.zeros(1, dtype=torch.float64), positive.flip(0)]) / positive.max()
    assert torch.allclose(codebook("nf4", CPU).values.double(), values, atol=1e-6)


def test_lloyd_max_is_max_s_table_for_sixteen_levels():
    """Max 1960, table I, N = 16: output levels, and a mean squared error of 0.009497."""
    published = [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]
    assert codebook("lloyd_max", CPU).values[8:].tolist() == pytest.approx(published, abs=6e-4)
    weight = torch.randn(64, 8192, generator=torch.Generator().manual_seed(0))
    number_format = CodebookFormat("lloyd_max", 8192)
    error = (quantize(weight, number_format, number_format.fit(weight)).dequantize() - weight).square().mean()
    assert float(error) == pytest.approx(0.009497, rel=0.01)


def test_quantile_cuts_the_normal_distribution_into_sixteen_equal_parts():
    shares = torch.special.ndtr(codebook("quantile", CPU).values.double())
    assert shares.tolist() == pytest.approx([(code + 0.5) / 16 for code in range(16)], abs=1e-6)


@pytest.mark.parametrize("number_format", ALL, ids=names(ALL))
def test_every_weight_gets_the_nearest_value(number_format):
    weight = weights()
    quantized = quantize(weight, number_format, number_format.fit(weight))
    chosen = (quantized.dequantize() - weight).abs()
    slack = 1e-6 * weight.abs().amax(1, keepdim=True)
    for code in range(number_format.levels):
        other = QTensor(number_format, torch.full_like(quantized.codes, code), quantized.params).dequantize()
        assert bool((chosen <= (other - weight).abs() + slack).all()), code


@pytest.mark.parametrize("number_format", ALL, ids=names(ALL))
def test_rounding_what_was_rounded_changes_nothing(number_format):
    weight = weights()
    params = number_format.fit(weight)
    once = quantize(weight, number_format, params).dequantize()
    assert torch.equal(quantize(once, number_format, params).dequantize(), once)


@pytest.mark.parametrize("number_format", ALL, ids=names(ALL))
def test_importance_never_raises_the_weighted_error(number_format):
    weight = weights(seed=1)
    for seed in range(3):
        importance = torch.rand(256, generator=torch.Generator().manual_seed(seed)) ** 8
        plain = quantize(weight, number_format, number_format.fit(weight))
        searched = quantize(weight, number_format, number_format.fit(weight, importance))
        assert weighted_error(weight, searched, importance) < weighted_error(weight, plain, importance)
    assert bool((number_format.fit(weight, torch.zeros(256))["scale"] >= 0).all())


@pytest.mark.parametrize("number_format", ALL, ids=names(ALL))
def test_params_have_the_promised_shapes_and_dtypes(number_format):
    for params in (number_format.fit(weights()), number_format.fit(weights(), torch.rand(256))):
        promised = number_format.param_shapes((8, 256))
        assert {name: (tuple(value.shape), str(value.dtype)) for name, value in params.items()} == {
            name: (shape, f"torch.{dtype}") for name, (shape, dtype) in promised.items()
        }
        bits = sum(8 * value.nbytes for value in params.values()) + 8 * 256 * (4 if number_format.levels == 16 else 8)
        assert number_format.bits_per_weight((8, 256)) == pytest.approx(bits / (8 * 256), rel=0.02)


@pytest.mark.parametrize("number_format", [f for f in ALL if f.rows_apart], ids=lambda f: f.name)
def test_rows_may_be_cut_apart(number_format):
    weight, importance = weights(), torch.rand(256)
    whole = quantize(weight, number_format, number_format.fit(weight, importance)).dequantize()
    part = weight[4:7]
    cut = quantize(part, number_format, number_format.fit(part, importance)).dequantize()
    assert torch.equal(whole[4:7], cut)


def test_columns_become_columns_whatever_the_slice():
    """What GPTQ does: round and decode a column at a time."""
    for number_format in ALL:
        weight = weights()
        params = number_format.fit(weight)
        spread = number_format.expand(params, (8, 256))
        whole = number_format.round(weight, spread)
        for column in (0, 63, 64, 255):
            one = {name: value[:, column] for name, value in spread.items()}
            assert torch.equal(number_format.round(weight[:, column], one), whole[:, column])


def test_nested_scales_come_back_within_a_step_of_their_map():
    scales = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 0.1
    codes, nested, offset = nest(scales)
    assert codes.shape == (1000,) and nested.shape == (4,) and offset.shape == (1,)
    assert len(dynamic_map(CPU)) == 256 and bool((dynamic_map(CPU).diff() > 0).all())
    back = unnest(codes, nested, offset)
    assert float((back - scales).abs().max()) <= 0.5 * 0.0142 * float(nested.max())
    same = torch.full((300,), 0.25)
    assert torch.equal(unnest(*nest(same)), same)


def test_nested_scales_that_moved_get_the_nearest_codes_under_the_same_offset():
    scales = torch.rand(600, generator=torch.Generator().manual_seed(3)) + 0.5
    codes, nested, offset = nest(scales)
    before = unnest(codes, nested, offset)
    moved = torch.where(torch.arange(600) % 3 == 0, before * 0.999, torch.nan)
    again, grown = renest(moved, codes, nested, offset)
    stays = moved.isnan()
    assert torch.equal(grown, nested) and torch.equal(again[stays], codes[stays])
    # Every code of the map, tried by hand.
    table = torch.stack([unnest(torch.full((600,), code).byte(), nested, offset) for code in range(256)], 1)
    best = (table - moved.unsqueeze(1)).abs()[~stays].amin(1)
    torch.testing.assert_close((unnest(again, nested, offset) - moved).abs()[~stays], best, rtol=0, atol=1e-6)


def test_a_block_of_scales_that_is_outgrown_is_nested_anew():
    scales = torch.rand(512, generator=torch.Generator().manual_seed(4)) + 0.5
    codes, nested, offset = nest(scales)
    moved = torch.full((512,), torch.nan)
    moved[3] = 4.0
    again, grown = renest(moved, codes, nested, offset)
    found = unnest(again, grown, offset)
    assert float(found[3]) == pytest.approx(4.0) and float(grown[1]) == float(nested[1]) and grown[0] > nested[0]
    assert torch.equal(again[256:], codes[256:])
    step = 0.02 * float(grown[0])
    torch.testing.assert_close(found[4:256], unnest(codes, nested, offset)[4:256], rtol=0, atol=step)


def test_plain_codes_are_chosen_before_scales_are_rounded():
    weight = weights()
    exact = CodebookFormat("nf4", 64)
    double = quantize_plainly(weight, CodebookFormat("nf4", 64, True))
    assert torch.equal(double.codes, quantize(weight, exact, exact.fit(weight)).codes)
    single = quantize_plainly(weight, exact)
    assert torch.equal(single.dequantize(), quantize(weight, exact, exact.fit(weight)).dequantize())


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((4, 96), "block sizes that work: 32"),
        ((4, 50), "none that bitsandbytes has"),
        ((4,), "matrices"),
        ((0, 64), "m"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_what_works(shape, reason):
    number_format = CodebookFormat("nf4")
    assert reason in number_format.misfit(shape)
    with pytest.raises(ValueError, match=reason):
        number_format.fit(torch.zeros(shape))


def test_nan_and_wrong_fields_are_errors():
    for number_format in (CodebookFormat("nf4"), RowInt8Format()):
        with pytest.raises(ValueError, match="NaN"):
            number_format.fit(torch.full((1, 64), float("nan")))
    with pytest.raises(ValueError, match="a table is"):
        CodebookFormat("nf5")
    with pytest.raises(ValueError, match="at least one"):
        CodebookFormat("nf4", 0)
