"""Gradients against LSQ and straight-through written down once more, in float64; values bit for bit as QTensor's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from torch import Tensor

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.numbers.tables import Table, codebook
from compress.kernels.qtensor import NumberFormat, Params, QTensor, quantize
from compress.kernels.search.integers import Zero
from compress.kernels.solve import fake_quant
from compress.kernels.solve.fake_quant import dequantize_trainable, fake_quantize

ZEROS: tuple[Zero, ...] = get_args(Zero)
FORMATS: list[NumberFormat] = [
    *(IntFormat(bits, size, zero) for bits in (2, 3, 4, 8) for size in (32, -1) for zero in ZEROS),
    IntFormat(4, 32, "middle", "bfloat16"),
    IntFormat(4, 32, "real", "float32"),
    *(CodebookFormat(table, 32, double) for table in get_args(Table) for double in (False, True)),
    *(FloatFormat(per) for per in ("tensor", "channel", "block")),
    Float4Format("mxfp4"),
    Float4Format("nvfp4"),
    RowInt8Format(),
]  # fmt: skip
SHAPES = [(1, 32), (7, 96), (131, 160), (5, 288)]
every_format = pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def start(number_format: NumberFormat, shape: tuple[int, int]) -> tuple[Tensor, Params, dict[str, Tensor]]:
    """A weight, parameters that leave some of it beyond the grid, and their reals, moved a little."""
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=generator) * 0.05
    params = number_format.fit(weight * 0.7)
    moved = {
        name: real * (1 + 0.1 * torch.randn(real.shape, generator=generator))
        for name, real in number_format.reals(params).items()
    }
    return weight, params, moved


def grid(number_format: NumberFormat) -> Tensor:
    """The values that a scale is multiplied with, float64, rising; for an integer zero point, its codes."""
    if isinstance(number_format, IntFormat):
        lowest = -(2 ** (number_format.bits - 1)) if number_format.zero == "middle" else 0
        return torch.arange(lowest, lowest + 2**number_format.bits, dtype=torch.float64)
    if isinstance(number_format, CodebookFormat):
        return codebook(number_format.table, torch.device("cpu")).values.double().sort().values
    if isinstance(number_format, FloatFormat):
        every = torch.arange(256).byte().view(torch.float8_e4m3fn).double()
        return every[every.isfinite()].sort().values
    if isinstance(number_format, Float4Format):
        positive = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
        return torch.cat([-positive.flip(0), positive])
    assert isinstance(number_format, RowInt8Format)
    return torch.arange(-127, 128, dtype=torch.float64) / 127


def spread_out(real: Tensor, shape: tuple[int, int], number_format: NumberFormat) -> Tensor:
    """A real of every weight, by rows and columns that share one."""
    block = isinstance(number_format, FloatFormat) and number_format.per == "block"
    rows, columns = (128, 128) if block else (shape[0] // real.shape[0], shape[1] // real.shape[1])
    return torch.stack([real[row // rows][torch.arange(shape[1]) // columns] for row in range(shape[0])])


def lsq(weight: Tensor, number_format: NumberFormat, params: Params, reals: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """LSQ (arXiv 1902.08153) by its definition: clip(w/s), a rounding that is passed straight through, times s.

    And by how much w/s lies beyond the grid.
    """
    shape = (weight.shape[0], weight.shape[1])
    scale = spread_out(reals["scale"], shape, number_format)
    minimum = spread_out(reals["minimum"], shape, number_format) if "minimum" in reals else torch.zeros(())
    zero = spread_out(params["zero"].double(), shape, number_format) if "zero" in params else torch.zeros(())
    values = grid(number_format)
    scaled = (weight - minimum) / scale + zero
    clipped = scaled.clamp(values[0], values[-1])
    nearest = values[(clipped.detach().unsqueeze(-1) - values).abs().argmin(-1)]
    return (clipped + (nearest - clipped).detach() - zero) * scale + minimum, (scaled - clipped).abs()


@every_format
@every_shape
def test_values_are_those_that_are_written(number_format: NumberFormat, shape: tuple[int, int]) -> None:
    weight, params, reals = start(number_format, shape)
    stored = number_format.stored(params, reals)
    written = quantize(weight, number_format, stored)
    assert torch.equal(fake_quantize(weight, number_format, params, reals), written.dequantize())
    assert torch.equal(dequantize_trainable(written.codes, number_format, params, reals), written.dequantize())


@every_format
@every_shape
def test_gradients_are_those_of_lsq(number_format: NumberFormat, shape: tuple[int, int]) -> None:
    weight, params, reals = start(number_format, shape)
    weight.requires_grad_()
    for real in reals.values():
        real.requires_grad_()
    stored = number_format.stored(params, {name: real.detach() for name, real in reals.items()})
    exact = {name: real.double().requires_grad_() for name, real in number_format.reals(stored).items()}
    latent = weight.detach().double().requires_grad_()
    expected_values, past = lsq(latent, number_format, stored, exact)
    values = fake_quantize(weight, number_format, params, reals)
    # On a border between two cells, as fp32 sees it, and on an end of the grid, a weight may go either way.
    doubtful = ((values - expected_values).abs() > 1e-4) | (past > 0) & (past < 2**-10)
    assert doubtful.float().mean() < 0.02
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(9)).masked_fill(doubtful, 0.0)

    found = torch.autograd.grad(values, [weight, *reals.values()], upstream)
    expected = torch.autograd.grad(expected_values, [latent, *exact.values()], upstream.double())
    assert torch.equal(found[0].double(), expected[0]) and bool(found[0][past > 0.1].eq(0).all())
    for mine, theirs in zip(found[1:], expected[1:]):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@every_format
def test_a_scale_learns_from_codes_that_stay(number_format: NumberFormat) -> None:
    """Against finite differences in float64: values are linear in the reals, so any step will do."""
    weight, params, reals = start(number_format, (7, 96))
    codes = quantize(weight, number_format, params).codes
    upstream = torch.randn(7, 96, generator=torch.Generator().manual_seed(9))
    leaves = [real.requires_grad_() for real in reals.values()]
    values = dequantize_trainable(codes, number_format, params, reals)
    found = torch.autograd.grad(values, leaves, upstream)

    def loss(moved: dict[str, Tensor]) -> float:
        spread = number_format.spread(params, moved, (7, 96))
        return float((number_format.value(codes.double(), spread) * upstream).sum())

    for name, gradient in zip(reals, found):
        at = {other: real.detach().double() for other, real in reals.items()}
        for place in [(0, 0), (-1, -1)]:
            up, down = at[name].clone(), at[name].clone()
            up[place] += 0.5
            down[place] -= 0.5
            slope = loss({**at, name: up}) - loss({**at, name: down})
            assert float(gradient[place]) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_scales_that_were_rounded_pass_their_gradient_on() -> None:
    """A half cannot hold the scale, nor E8M0 one that is no power of two: the gradient knows nothing of it."""
    for number_format in (IntFormat(4, -1), Float4Format("mxfp4")):
        weight = torch.linspace(-1, 1, 32).view(1, 32)
        params = number_format.fit(weight)
        (scale,) = number_format.reals(params).values()
        stored = number_format.stored(params, {"scale": scale * 1.01})
        assert float(number_format.reals(stored)["scale"]) != float(scale * 1.01)
        scale = (scale * 1.01).requires_grad_()
        fake_quantize(weight, number_format, params, {"scale": scale}).square().sum().backward()
        assert scale.grad is not None and bool(scale.grad.isfinite().all()) and bool((scale.grad != 0).all())


@pytest.mark.parametrize("number_format", [IntFormat(4, 32), FloatFormat("block"), CodebookFormat("nf4", 32, True)])
def test_rows_at_a_time_give_the_same(number_format: NumberFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> list[Tensor]:
        weight, params, reals = start(number_format, (131, 160))
        leaves = [weight.requires_grad_(), reals["scale"].requires_grad_()]
        values = fake_quantize(weight, number_format, params, reals)
        return [values, *torch.autograd.grad(values, leaves, weight.detach())]

    whole = results()
    monkeypatch.setattr(fake_quant, "FEW", 7 * 160)
    assert all(torch.equal(a, b) for a, b in zip(whole, results()))


def test_nothing_of_the_size_of_the_weight_is_kept() -> None:
    weight, params, reals = start(IntFormat(4, 32), (64, 64))
    weight.requires_grad_()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fake_quantize(weight, IntFormat(4, 32), params, reals)
    assert set(kept) <= {weight.data_ptr(), reals["scale"].data_ptr()} and kept


def test_a_weight_on_the_end_of_the_grid_is_within() -> None:
    """Latents begin there: fp32's rounding of w/s must not decide whether they learn."""
    number_format = IntFormat(3, -1)
    scale = torch.rand(50, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    params = {"scale": scale.half()}
    ends = QTensor(number_format, torch.tensor([[0, 7]]).byte().expand(50, 2), params).dequantize()
    for factor, learns in ((1 - 1e-6, True), (1 + 1e-6, True), (1.1, False)):
        weight = (ends * factor).requires_grad_()
        fake_quantize(weight, number_format, params, number_format.reals(params)).sum().backward()
        assert torch.equal(weight.grad, torch.full_like(ends, float(learns)))


def test_blocks_of_zeros_leave_all_finite() -> None:
    for number_format in (CodebookFormat("nf4", 32), RowInt8Format(), IntFormat(4, 32), FloatFormat()):
        params = number_format.fit(torch.zeros(2, 64))
        for weight in (torch.zeros(2, 64, requires_grad=True), torch.full((2, 64), 0.1, requires_grad=True)):
            reals = {name: real.clone().requires_grad_() for name, real in number_format.reals(params).items()}
            fake_quantize(weight, number_format, params, reals).sum().backward()
            assert all(bool(leaf.grad.isfinite().all()) for leaf in (weight, *reals.values()))  # type: ignore[union-attr]


@dataclass(frozen=True)
class Ternary(NumberFormat):
    """A toy without parameters: −1, 0, 1."""

    name = "toy ternary"
    levels = 3

    def param_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], str]]:
        return {}

    def _fit(self, weight: Tensor, importance: Tensor | None) -> Params:
        return {}

    def spread(self, params: Params, reals: Params, shape: tuple[int, ...]) -> Params:
        return {}

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        return weight.round().clamp(-1, 1) + 1

    def value(self, codes: Tensor, expanded: Params) -> Tensor:
        return codes - 1

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        return 1.58


def test_a_format_without_reals_trains_its_weights() -> None:
    weight = torch.tensor([[-3, -1.2, -0.4, 0.2, 0.9, 1.1]], requires_grad=True)
    values = fake_quantize(weight, Ternary(), {}, {})
    values.sum().backward()
    assert values.tolist() == [[-1, -1, 0, 0, 1, 1]] and weight.grad is not None
    assert weight.grad.tolist() == [[0, 0, 1, 1, 1, 0]]


def test_codes_that_span_columns_are_passed_straight_through(pairs: NumberFormat) -> None:
    weight = torch.linspace(-1, 1, 24).view(3, 8).requires_grad_()
    params = pairs.fit(weight.detach() * 0.5)
    values = fake_quantize(weight, pairs, params, {})
    assert torch.equal(values, quantize(weight.detach(), pairs, params).dequantize())
    values.sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 8))
