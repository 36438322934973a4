"""What the manifest says of one weight: its error where inputs are known, and where they are not."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import quantize
from compress.passes.core.change import Change
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Hessian
from compress.passes.sweep.tensor_report import TensorReport, tensor_report

WEIGHT = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
NOISY = WEIGHT * 1.1


def report(change: Change, stats: LinearStats) -> TensorReport:
    return tensor_report(WEIGHT, change.values, change, stats, {"before": 1.0})


def test_without_statistics_the_error_is_that_of_the_weight() -> None:
    found = report(Change(NOISY, notes={"after": "x"}), LinearStats(frozenset(), 0, torch.device("cpu")))
    assert found.relative_error == pytest.approx(0.01, rel=1e-4) and found.sqnr_db == pytest.approx(20, rel=1e-4)
    assert (found.format, found.bits) == ("float32", 32.0)
    assert found.notes == {"before": 1.0, "after": "x"}
    assert found.flat()["after"] == "x" and "reason" not in found.flat()


def test_with_statistics_the_error_is_that_of_the_output() -> None:
    stats = LinearStats(frozenset({Hessian}), 32, torch.device("cpu"))
    stats.add(torch.eye(32)[:1] * 3, None)  # only the first column is ever seen
    stats.finish()
    spoiled = WEIGHT.clone()
    spoiled[:, 1:] = 0
    assert report(Change(spoiled), stats).relative_error == 0
    assert report(Change(spoiled), stats).sqnr_db < 1


def test_a_quantized_weight_says_its_format_and_its_bits_with_scales() -> None:
    number_format = IntFormat(4, 32)
    change = Change(quantize(WEIGHT, number_format, number_format.fit(WEIGHT)), unreached=True)
    found = report(change, LinearStats(frozenset(), 0, torch.device("cpu")))
    assert (found.format, found.bits) == (number_format.name, 4 + 16 / 32)
    assert found.flat()["reason"] == "no calibration token reached it"
    assert found.noting("x", 2.0).notes == {"before": 1.0, "x": 2.0}


def test_no_error_at_all_is_a_number_json_has() -> None:
    assert report(Change(WEIGHT), LinearStats(frozenset(), 0, torch.device("cpu"))).sqnr_db == 200
