"""AWQ's scales and clipping against the paper's equations, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.kernels.measure.error import output_energy
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat, Params, quantize
from compress.kernels.search.integers import Zero
from compress.kernels.solve.awq import clip, clipped_params, grid, power_scale, scaled_error, weight_share

FORMATS = [
    CodebookFormat("nf4", 16),
    CodebookFormat("fp4", 32),
    CodebookFormat("nf4", 16, double_quant=True),
    Float4Format("mxfp4"),
    Float4Format("nvfp4"),
    FloatFormat("channel"),
]


@pytest.fixture
def problem() -> tuple[Tensor, Tensor]:
    """A weight [24, 64] and inputs [256, 64] with a few loud channels."""
    torch.manual_seed(0)
    x = torch.randn(256, 64) * torch.exp(torch.randn(64) * 1.5)
    return torch.randn(24, 64), x


def test_the_scale_is_a_power_of_the_activations(problem: tuple[Tensor, Tensor]) -> None:
    magnitude = problem[1].abs().mean(0)
    for gamma in (0.0, 0.5, 1.0):
        scale = power_scale(magnitude, gamma)
        expected = magnitude**gamma
        assert torch.allclose(scale / scale[0], expected / expected[0], rtol=1e-4)
        assert scale.log().mean().abs() < 1e-5


def test_the_weight_term_divides_by_the_weights_share(problem: tuple[Tensor, Tensor]) -> None:
    weight, x = problem
    magnitude, share = x.abs().mean(0), weight_share([weight[:10], weight[10:]], 4)
    for column in (0, 17, 63):
        group = weight[:, column // 16 * 16 : column // 16 * 16 + 16].abs()
        assert torch.allclose(share[column], (weight[:, column].abs() / group.amax(1)).mean())
    scale, expected = power_scale(magnitude, 0.3, share), magnitude**0.3 / share**0.7
    assert torch.allclose(scale / scale[0], expected / expected[0], rtol=1e-4)


def test_dead_channels_keep_the_scale_one(problem: tuple[Tensor, Tensor]) -> None:
    magnitude = problem[1].abs().mean(0)
    magnitude[5] = 0
    scale = power_scale(magnitude, 0.5)
    assert scale[5] == 1 and scale.isfinite().all() and (scale > 0).all()
    assert torch.equal(power_scale(torch.zeros(4), 0.5), torch.ones(4))


def test_the_grid_begins_with_no_scale_at_all(problem: tuple[Tensor, Tensor]) -> None:
    scales = list(grid(problem[1].abs().mean(0), weight_share([problem[0]], 4)))
    assert len(scales) == 40 and torch.equal(scales[0], torch.ones(64))


def test_the_error_is_that_of_the_outputs(problem: tuple[Tensor, Tensor]) -> None:
    weight, x = problem
    number_format = IntFormat(4, 16, "integer")
    scale = power_scale(x.abs().mean(0), 0.5)
    scaled = weight * scale
    rounded = quantize(scaled, number_format, number_format.fit(scaled)).dequantize()
    outputs = (x / scale) @ rounded.T - x @ weight.T
    assert scaled_error(weight, x.T @ x, number_format, scale) == pytest.approx(float(outputs.square().sum()), rel=1e-3)


@pytest.mark.parametrize("zero", ["middle", "integer", "real"])
@pytest.mark.parametrize("group_size", [16, -1])
def test_clipping_errs_less_in_every_group_than_the_whole_range_and_than_the_format_s_own(
    problem: tuple[Tensor, Tensor], zero: Zero, group_size: int
) -> None:
    weight, x = problem
    hessian, number_format = x.T @ x, IntFormat(3, group_size, zero)
    params = clipped_params(weight, hessian, number_format)
    size = 64 if group_size == -1 else group_size

    def errors(chosen: Tensor) -> Tensor:
        difference = (weight - chosen).view(24, -1, size)
        inputs = x.view(len(x), -1, size)
        return torch.einsum("tgn,rgn->tgr", inputs, difference).square().sum(0)

    clipped = errors(quantize(weight, number_format, params).dequantize())
    for other in (number_format.fit(weight), number_format.fit(weight, hessian.diagonal())):
        assert (clipped <= errors(quantize(weight, number_format, other).dequantize()) * (1 + 1e-4)).all()
    assert clipped.sum() < errors(quantize(weight, number_format, number_format.fit(weight)).dequantize()).sum()


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda number_format: number_format.name)
def test_any_number_format_may_be_clipped(problem: tuple[Tensor, Tensor], number_format: NumberFormat) -> None:
    weight, x = problem
    hessian = x.T @ x
    params = clipped_params(weight, hessian, number_format)
    assert {name: (value.shape, value.dtype) for name, value in params.items()} == {
        name: (value.shape, value.dtype) for name, value in number_format.fit(weight).items()
    }
    blocks = torch.block_diag(*_diagonal(hessian, number_format.groups((24, 64))))

    def error(chosen: Params) -> float:
        return output_energy(weight - quantize(weight, number_format, chosen).dequantize(), blocks)

    cut = clip(weight, number_format, params)
    reached = quantize(weight, number_format, params)
    assert torch.equal(quantize(cut, number_format, params).codes, reached.codes)
    assert ((cut == weight) | torch.isclose(cut, reached.dequantize())).all()
    for other in (number_format.fit(weight), number_format.fit(weight, hessian.diagonal())):
        assert error(params) <= error(other) * (1 + 1e-4)
    assert error(params) < error(number_format.fit(weight))


def _diagonal(hessian: Tensor, groups: int) -> list[Tensor]:
    size = len(hessian) // groups
    return [hessian[start : start + size, start : start + size] for start in range(0, len(hessian), size)]


def test_clipped_weights_round_to_the_same_codes_and_lie_within_the_grid(problem: tuple[Tensor, Tensor]) -> None:
    weight, x = problem
    for zero in ("middle", "integer"):
        number_format = IntFormat(3, 16, zero)
        params = clipped_params(weight, x.T @ x, number_format)
        cut = clip(weight, number_format, params)
        assert torch.equal(quantize(cut, number_format, params).codes, quantize(weight, number_format, params).codes)
        reached = quantize(cut, number_format, params).dequantize()
        step = params["scale"].float().abs().repeat_interleave(16, 1)
        assert ((cut - reached).abs() <= step / 2 * (1 + 1e-5)).all()
        assert not torch.equal(cut, weight)
