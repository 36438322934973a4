"""Rounding to nearest: where the scales come from, and that each search lowers what it is to lower."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compress.passes.core.linear import LinearPass
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.mxfp4 import MXFP4
from compress.passes.nf4 import NF4
from compress.passes.nvfp4 import NVFP4
from compress.passes.options.rounding import RoundingOptions
from compress.passes.rtn import RTN


def weight() -> torch.Tensor:
    return torch.randn(32, 128, generator=torch.Generator().manual_seed(0)) * 0.05


def inputs() -> torch.Tensor:
    """[tokens, in], some channels much louder than others."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(512, 128, generator=random) * torch.exp(torch.randn(128, generator=random) * 1.5)


def rounded(step: LinearPass) -> torch.Tensor:
    stats = LinearStats(step.needs(), 128, torch.device("cpu"))
    stats.add(inputs(), None)
    stats.finish()
    return step.siblings({"layer": weight()}, stats)["layer"].weight.dequantize()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RTN, {"group_size": 32}),
        (RTN, {"group_size": 32, "symmetric": False}),
        (RTN, {"bits": 3, "group_size": -1}),
        (NF4, {}),
        (NF4, {"double_quant": True}),
        (NF4, {"table": "fp4"}),
        (MXFP4, {}),
        (NVFP4, {}),
    ],
)
def test_each_search_is_best_at_what_it_searches(kind: type[LinearPass], options: dict[str, Any]) -> None:
    found = {search: weight() - rounded(kind(**options, search=search)) for search in ("off", "weights", "inputs")}
    energy = inputs().square().sum(0)
    plain = {search: float(error.square().sum()) for search, error in found.items()}
    weighted = {search: float((error.square() * energy).sum()) for search, error in found.items()}
    assert min(plain, key=lambda search: plain[search]) == "weights"
    assert min(weighted, key=lambda search: weighted[search]) == "inputs"


def test_rtn_and_nf4_need_no_data_by_default() -> None:
    assert not RTN().needs() and not NF4().needs()
    assert RTN(search="inputs").needs() and NF4(search="inputs").needs()


@pytest.mark.parametrize("kind", [RTN, NF4, MXFP4])
def test_without_a_token_scales_are_searched_as_if_inputs_were_alike(kind: type[LinearPass]) -> None:
    size = {"group_size": 32} if kind is RTN else {}
    empty = LinearStats(kind(search="inputs").needs(), 128, torch.device("cpu"))
    empty.finish()
    change = kind(**size, search="inputs").siblings({"layer": weight()}, empty)["layer"]
    assert change.unreached
    assert torch.equal(change.values, rounded(kind(**size, search="weights")))
    assert not kind(**size).siblings({"layer": weight()}, empty)["layer"].unreached  # it wants no data


def test_an_embedding_has_no_inputs_and_is_not_unreached() -> None:
    none = LinearStats(frozenset(), 0, torch.device("cpu"))
    assert not RTN(search="inputs", group_size=32).siblings({"layer": weight()}, none)["layer"].unreached


def test_rules_may_search_differently() -> None:
    rules = [{"match": "a", "value": "inputs"}, {"value": "off"}]
    step = RTN.model_validate({"search": rules, "group_size": 32})
    assert isinstance(step, RoundingOptions) and step.needs()
    assert torch.equal(
        step.siblings({"b": weight()}, LinearStats(frozenset(), 0, torch.device("cpu")))["b"].values,
        rounded(RTN(group_size=32, search="off")),
    )
