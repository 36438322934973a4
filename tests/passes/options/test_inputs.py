"""Options of inputs that are rounded: what is measured for them, and what a module without a token lacks."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.numbers.activations import grid_scale
from compress.passes.forward.input_ranges import Extremes, Histogram, Moments
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Energy, Statistic
from compress.passes.fp8 import FP8
from compress.passes.int8 import INT8
from compress.passes.options.inputs import InputOptions

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))


def stats_of(step: InputOptions, tokens: int) -> LinearStats:
    stats = LinearStats(step.needs(), 32, torch.device("cpu"))
    stats.add(X[:tokens], None)
    stats.finish()
    return stats


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, set()),
        ({"activations": "static"}, {Histogram}),
        ({"activations": "static", "range": "minmax"}, {Extremes}),
        ({"activations": "static", "range": "sigma"}, {Moments}),
        ({"smooth": 0.5}, {Extremes}),
        ({"search": "inputs"}, {Energy}),
    ],
)
def test_only_what_is_needed_is_gathered(options: dict[str, object], needs: set[type[Statistic]]) -> None:
    assert INT8.model_validate(options).needs() == needs


@pytest.mark.parametrize("kind", [INT8, FP8])
def test_a_static_scale_reaches_the_largest_input(kind: type[InputOptions]) -> None:
    step = kind(activations="static", range="minmax")
    change = step.siblings({"a": WEIGHT}, stats_of(step, 64))["a"]
    grid = step.input_format().grid
    assert torch.equal(change.tensors["input_scale"], grid_scale(X.abs().max(), grid).reshape(1))
    assert change.unmeasured == () and not change.unreached
    assert change.target is not None and torch.equal(change.target, WEIGHT)


@pytest.mark.parametrize("rule", ["minmax", "sigma", "percentile", "mse"])
def test_without_a_token_the_scale_is_yet_to_come(rule: str) -> None:
    step = INT8.model_validate({"activations": "static", "range": rule})
    change = step.siblings({"a": WEIGHT}, stats_of(step, 0))["a"]
    assert (change.unmeasured, dict(change.tensors), change.unreached) == (("input_scale",), {}, True)
    reached = step.siblings({"a": WEIGHT}, stats_of(step, 64))["a"]
    assert torch.equal(change.values, reached.values)  # weights are rounded all the same


@pytest.mark.parametrize("mode", ["dynamic", "none"])
def test_what_is_rounded_as_it_comes_has_no_scale(mode: str) -> None:
    step = INT8.model_validate({"activations": mode, "smooth": 0.5})
    change = step.siblings({"a": WEIGHT}, stats_of(step, 0))["a"]
    assert change.unmeasured == () and not change.tensors
