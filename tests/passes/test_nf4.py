"""NF4 as a pass: its options reach the number format, and what they promise holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.gptq import GPTQ
from compress.passes.nf4 import NF4

NO_STATS = LinearStats(frozenset(), 0, torch.device("cpu"))


def weight() -> torch.Tensor:
    return torch.randn(16, 256, generator=torch.Generator().manual_seed(0)) * 0.05


def error(**options: Any) -> float:
    rewritten = NF4(**options).siblings({"layer": weight()}, NO_STATS)["layer"].weight
    return float((rewritten.dequantize() - weight()).square().sum())


def test_options_may_differ_from_module_to_module() -> None:
    step = NF4(
        table=[{"match": "*.down", "value": "fp4"}, {"value": "nf4"}],
        block_size=[{"match": "*.up", "value": 128}, {"match": "*.down", "value": 64}],
        double_quant=[{"match": "*.up", "value": True}],
    )
    assert step.number_format("a.down") == CodebookFormat("fp4", 64)
    assert step.number_format("a.up") == CodebookFormat("nf4", 128, True)
    assert step.number_format("a.gate") is None


def test_gptq_takes_integers_by_default_and_tables_by_name() -> None:
    assert GPTQ().number_format("a") == IntFormat(4, 128)
    assert GPTQ(format="nf4", block_size=32).number_format("a") == CodebookFormat("nf4", 32)
    mixed = GPTQ(format=[{"match": "b", "value": "fp4"}, {"match": "c", "value": "int"}], double_quant=True)
    assert mixed.number_format("a") is None and mixed.number_format("c") == IntFormat(4, 128)
    assert mixed.number_format("b") == CodebookFormat("fp4", 64, True)


@pytest.mark.parametrize("table", ["nf4", "fp4", "quantile", "lloyd_max"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_a_search_lowers_the_error_and_smaller_blocks_do(table: str, double_quant: bool) -> None:
    options = {"table": table, "double_quant": double_quant}
    assert error(**options, search="weights") < error(**options)
    assert error(**options, block_size=32, search="weights") < error(**options, block_size=256, search="weights")


def test_stacked_linears_get_what_each_gets_alone() -> None:
    weights = {"q": weight(), "k": weight()[:8] * 3}
    for options in ({}, {"double_quant": True}, {"search": "weights"}):
        together = NF4(**options).siblings(weights, NO_STATS)
        for name, alone in weights.items():
            expected = NF4(**options).siblings({name: alone}, NO_STATS)[name].weight.dequantize()
            assert torch.equal(together[name].weight.dequantize(), expected)
