"""FP4: the table of the standard, scales by the formulas of their documents, exactness."""

import math

import pytest
import torch

from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.qtensor import QTensor, quantize
from compress.kernels.solve.gptq import gptq_solve

TABLE = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
BLOCK = {"mxfp4": 32, "nvfp4": 16}


def weights(rows=6, columns=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows).unsqueeze(1)


def scales(quantized):
    """The scale of every weight, from what is stored, with Python's own arithmetic."""
    params, block = quantized.params, BLOCK[quantized.format.scheme]
    rows, columns = quantized.shape
    result = torch.empty(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            stored = int(params["scale"][row, column // block])
            if quantized.format.scheme == "mxfp4":
                result[row, column] = 2.0 ** (stored - 127)
            else:
                exponent, mantissa = stored >> 3, stored & 7
                value = (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa * 2.0**-9
                result[row, column] = value * float(params["tensor_scale"][row, 0])
    return result


@pytest.mark.parametrize("importance", [None, torch.ones(64)])
@pytest.mark.parametrize("scheme", BLOCK)
def test_codes_are_the_nearest_of_the_table_and_values_exact(scheme, importance):
    weight, number_format = weights(), Float4Format(scheme)
    quantized = quantize(weight, number_format, number_format.fit(weight, importance))
    scale = scales(quantized)
    table = torch.tensor(TABLE, dtype=torch.float64)
    values = table[quantized.codes.long()] * scale
    assert torch.equal(quantized.dequantize().double(), values)
    assert torch.equal(quantized.dequantize().bfloat16().double(), values)
    nearest = (table * scale.unsqueeze(-1) - weight.double().unsqueeze(-1)).abs().amin(-1)
    torch.testing.assert_close((values - weight.double()).abs(), nearest, rtol=1e-12, atol=0)


def test_ties_go_to_even_codes():
    middles = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    x = torch.tensor([middles + [6.0] + [0.0] * 8 + [-m for m in middles] + [9.0] + [0.0] * 8])
    params = {"scale": torch.tensor([[127]], dtype=torch.uint8)}
    codes = quantize(x, Float4Format("mxfp4"), params).codes[0].tolist()
    assert codes[:8] == [0, 2, 2, 4, 4, 6, 6, 7] and codes[16:24] == [8, 10, 10, 12, 12, 14, 14, 7]


def test_mxfp4_takes_the_exponent_of_the_largest_value():
    """floor(log2 max|w|) − 2 (OCP 1.0, 6.3), and one more where the largest would lie at 7 or above."""
    weight = weights()
    params = Float4Format("mxfp4").fit(weight)
    for row in range(6):
        for block in range(2):
            largest = float(weight[row, block * 32 : block * 32 + 32].abs().max())
            exponent = math.floor(math.log2(largest)) - 2
            exponent += largest / 2.0**exponent >= 7
            assert int(params["scale"][row, block]) == exponent + 127


def test_nvfp4_scales_reach_the_largest_value():
    weight = weights()
    params = Float4Format("nvfp4").fit(weight)
    tensor_scale = float(params["tensor_scale"][0, 0])
    assert params["tensor_scale"].unique().numel() == 1 and math.log2(tensor_scale).is_integer()
    assert tensor_scale / 2 < float(weight.abs().max()) / (6 * 448) <= tensor_scale
    wanted = weight.abs().unflatten(1, (-1, 16)).amax(-1) / 6 / tensor_scale
    expected = wanted.clamp(min=2**-9).to(torch.float8_e4m3fn)
    assert torch.equal(params["scale"].view(torch.float8_e4m3fn).float(), expected.float())


@pytest.mark.parametrize("scheme", BLOCK)
def test_degenerate_blocks(scheme):
    number_format = Float4Format(scheme)
    for value in (0.0, 1e-30, 1e-44, 1e30, 3e38):
        weight = torch.full((2, 32), value)
        weight[1] = 0
        for importance in (None, torch.ones(32)):
            values = quantize(weight, number_format, number_format.fit(weight, importance)).dequantize()
            assert bool((values[1] == 0).all()) and bool(values.isfinite().all())
            if value > 1e-37:
                torch.testing.assert_close(values[0], weight[0], rtol=0.2, atol=0)


@pytest.mark.parametrize("scheme", BLOCK)
def test_rows_may_be_cut_and_stacked(scheme):
    weight, number_format = weights(), Float4Format(scheme)
    whole = quantize(weight, number_format, number_format.fit(weight))
    part = QTensor(number_format, whole.codes[2:4], {name: p[2:4] for name, p in whole.params.items()})
    assert number_format.rows_apart and torch.equal(part.dequantize(), whole.dequantize()[2:4])
    for name, (shape, dtype) in number_format.param_shapes((6, 64)).items():
        assert (tuple(whole.params[name].shape), str(whole.params[name].dtype)) == (shape, f"torch.{dtype}")


@pytest.mark.parametrize("scheme", BLOCK)
def test_gptq_beats_rounding(scheme):
    generator = torch.Generator().manual_seed(1)
    weight, number_format = weights(16, 96, seed=2), Float4Format(scheme)
    x = torch.randn(300, 30, generator=generator) @ torch.randn(30, 96, generator=generator)
    params = number_format.fit(weight)
    solved, _ = gptq_solve(weight, x.T @ x, number_format, params=params)
    plain = quantize(weight, number_format, params)
    errors = [float((((weight - q.dequantize()) @ x.T) ** 2).sum()) for q in (solved, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_bits_and_refusals():
    assert Float4Format("mxfp4").bits_per_weight((8, 64)) == 4.25
    assert Float4Format("nvfp4").bits_per_weight((8, 64)) == 4.5 + 32 / 512
    assert "blocks of 32" in Float4Format("mxfp4").misfit((4, 48)) and Float4Format("nvfp4").misfit((4, 48)) is None
    with pytest.raises(ValueError, match="mxfp4, nvfp4"):
        Float4Format("fp4")
    with pytest.raises(ValueError, match="NaN or Inf"):
        Float4Format("mxfp4").fit(torch.full((1, 32), torch.inf))
