"""Ranges of static grids are those of the data, whatever pieces it comes in."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.numbers.activations import grid_scale
from compress.passes.forward.input_ranges import Extremes, Histogram, Moments


def data():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(50, 32, generator=generator) * (3 if part == 1 else 1) for part in range(3)]


def gathered(kind):
    statistic = kind(32, torch.device("cpu"))
    for part in data():
        statistic.tokens += len(part)
        statistic.add(part, None)
    return statistic, torch.cat(data())


def test_ranges_are_those_of_the_data():
    extremes, x = gathered(Extremes)
    assert torch.equal(extremes.columns, x.abs().amax(0))
    moments, _ = gathered(Moments)
    expected = x.double().mean().abs() + 3 * x.double().std(correction=0)
    assert float(moments.reach(3)) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(moments.energy, x.double().square().sum(0))
    histogram, _ = gathered(Histogram)
    for percent in (50, 99, 99.9):
        expected = torch.quantile(x.abs().flatten(), percent / 100, interpolation="higher")
        assert float(histogram.percentile(percent)) == pytest.approx(float(expected), rel=0.02)
    assert histogram.counts.sum() == x.numel()


@pytest.mark.parametrize("grid, top", [("int8", 127), ("fp8", 448)])
def test_the_mse_range_is_near_the_best_there_is(grid, top):
    histogram, x = gathered(Histogram)

    def error(reach):
        scaled = (x * (top / reach)).clamp(-top - (grid == "int8"), top)
        rounded = scaled.round() if grid == "int8" else scaled.to(torch.float8_e4m3fn).float()
        return float((rounded * (reach / top) - x).double().square().sum())

    best = min(error(float(x.abs().max()) * part / 400) for part in range(1, 401))
    assert error(float(histogram.least_error(grid))) <= best * 1.02


@pytest.mark.parametrize("kind", [Extremes, Moments, Histogram])
def test_inputs_that_never_came_give_a_usable_scale(kind):
    statistic = kind(4, torch.device("cpu"))
    reaches = {
        Extremes: lambda: [statistic.columns.amax()],
        Moments: lambda: [statistic.reach(3)],
        Histogram: lambda: [statistic.percentile(99), statistic.least_error("int8")],
    }[kind]()
    assert all(float(grid_scale(reach, "int8")) == 1 for reach in reaches)


def test_silent_inputs_give_a_usable_scale():
    histogram = Histogram(4, torch.device("cpu"))
    histogram.add(torch.zeros(3, 4), None)
    assert float(histogram.percentile(99)) >= 0 and float(histogram.least_error("int8")) >= 0


@pytest.mark.parametrize("kind", [Extremes, Moments, Histogram])
def test_divided_statistics_are_those_of_divided_inputs(kind):
    scale = torch.linspace(0.3, 8, 32)
    divided, _ = gathered(kind)
    divided.divide(scale)
    direct = kind(32, torch.device("cpu"))
    for part in data():
        direct.tokens += len(part)
        direct.add(part / scale, None)
    if kind is Extremes:
        torch.testing.assert_close(divided.columns, direct.columns)
    elif kind is Moments:
        assert float(divided.reach(3)) == pytest.approx(float(direct.reach(3)), rel=1e-5)
    else:
        assert float(divided.percentile(95)) == pytest.approx(float(direct.percentile(95)), rel=0.03)
