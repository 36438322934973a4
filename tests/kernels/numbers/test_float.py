"""FP8: torch's own casts, the scale of every region, and GPTQ on top."""

import pytest
import torch

from compress.kernels.numbers.float import FloatFormat, fp8_codes, fp8_values
from compress.kernels.qtensor import QTensor, quantize
from compress.kernels.solve.gptq import gptq_solve

PER = ("tensor", "channel", "block")
SHAPES = [(1, 1), (3, 64), (128, 128), (129, 300), (257, 127)]


def weights(shape, seed=0):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    return weight * torch.logspace(-2, 1, shape[0]).unsqueeze(1)


def regions(shape, per):
    """Row and column slices of every region, by counting."""
    height, width = {"tensor": shape, "channel": (1, shape[1]), "block": (128, 128)}[per]
    for row, top in enumerate(range(0, shape[0], height)):
        for column, left in enumerate(range(0, shape[1], width)):
            yield (row, column), (slice(top, top + height), slice(left, left + width))


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_the_casts_of_torch_region_by_region(per, shape):
    weight, number_format = weights(shape), FloatFormat(per)
    params = number_format.fit(weight)
    quantized = quantize(weight, number_format, params)
    values, promised = quantized.dequantize(), number_format.param_shapes(shape)
    assert {name: (tuple(p.shape), str(p.dtype)) for name, p in params.items()} == {
        name: (size, f"torch.{dtype}") for name, (size, dtype) in promised.items()
    }
    assert quantized.codes.dtype == torch.uint8 and quantized.codes.shape == shape
    for place, region in regions(shape, per):
        scale = params["scale"][place]
        assert scale == weight[region].abs().max() / 448
        cast = (weight[region] / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(quantized.codes[region].view(torch.float8_e4m3fn).float(), cast.float())
        assert torch.equal(values[region], cast.float() * scale)


def test_rounding_goes_to_the_nearest_of_all_values_and_saturates():
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    every = every[every.isfinite()].unique()
    x = torch.cat([torch.linspace(-500, 500, 20001), torch.logspace(-12, 4, 4001), (every[1:] + every[:-1]) / 2])
    codes = fp8_codes(x)
    assert not bool(((codes & 0x7F) == 0x7F).any())
    expected = (x.clamp(-448, 448).unsqueeze(1) - every).abs().amin(1)
    assert torch.equal((fp8_values(codes) - x.clamp(-448, 448)).abs(), expected)
    ties = (every[1:] + every[:-1]) / 2
    assert not bool((fp8_codes(ties) & 1).any())  # to even
    assert fp8_values(fp8_codes(torch.tensor([1e9, -1e9, torch.inf]))).tolist() == [448, -448, 448]


def test_nan_patterns_decode_to_nan():
    codes = torch.tensor([[0x7F, 0xFF, 0x7E]], dtype=torch.uint8)
    values = QTensor(FloatFormat("channel"), codes, {"scale": torch.ones(1, 1)}).dequantize()
    assert values.isnan().tolist() == [[True, True, False]] and values[0, 2] == 448


@pytest.mark.parametrize("per", PER)
def test_degenerate_regions_keep_a_usable_scale(per):
    for value in (0.0, 1e-44, 1e-30, 3e38):
        weight = torch.full((130, 130), value)
        params = FloatFormat(per).fit(weight, torch.ones(130))
        assert bool(params["scale"].isfinite().all()) and bool((params["scale"] > 0).all())
        values = quantize(weight, FloatFormat(per), params).dequantize()
        assert torch.allclose(values, weight, rtol=0.07, atol=1e-40)


@pytest.mark.parametrize("per", PER)
def test_gptq_runs_on_fp8_and_beats_rounding(per):
    generator = torch.Generator().manual_seed(1)
    weight = weights((130, 140), seed=2)
    x = torch.randn(400, 40, generator=generator) @ torch.randn(40, 140, generator=generator)
    hessian = x.T @ x
    number_format = FloatFormat(per)
    params = number_format.fit(weight)
    solved, report = gptq_solve(weight, hessian, number_format, params=params)
    plain = quantize(weight, number_format, params)
    errors = [float((((weight - q.dequantize()) @ x.T) ** 2).sum()) for q in (solved, plain)]
    assert errors[0] < 0.7 * errors[1] and report.error == pytest.approx(errors[0], rel=0.01)
    assert not bool(((solved.codes & 0x7F) == 0x7F).any())


def test_bits_names_and_refusals():
    assert FloatFormat("block").bits_per_weight((256, 128)) == 8 + 64 / (256 * 128)
    assert FloatFormat("tensor").bits_per_weight((4, 8)) == 9
    assert FloatFormat("channel").name == "fp8 per channel"
    assert [FloatFormat(per).rows_apart for per in PER] == [False, True, False]
    with pytest.raises(ValueError):
        FloatFormat("row")
    with pytest.raises(ValueError, match="matrices"):
        FloatFormat().fit(torch.ones(3))
    with pytest.raises(ValueError, match="NaN or Inf"):
        FloatFormat().fit(torch.tensor([[1.0, torch.nan]]))
