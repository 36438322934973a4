"""What is lost in rounding onto a block type, with an importance of columns and without: less than by llama.cpp."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from ggml import decoded, encoded
from torch import Tensor

from compress.formats.gguf.blocks.formatted import FormatType
from compress.formats.gguf.blocks.types import BLOCKS, IntType

FORMATS = {name: found.format for name, found in BLOCKS.items() if isinstance(found, IntType | FormatType)}
each = pytest.mark.parametrize("name", FORMATS)
COLUMNS = 1024


@cache
def weights(tails: bool) -> Tensor:
    """Rows like a model's: normal; or of various size, some columns larger, some weights far out."""
    generator = torch.Generator().manual_seed(int(tails))
    weight = torch.randn(24, COLUMNS, generator=generator) * 0.02
    if tails:
        weight *= torch.rand(24, 1, generator=generator) * (1 + torch.rand(COLUMNS, generator=generator) ** 4)
        weight[torch.rand(24, COLUMNS, generator=generator) > 0.999] *= 8
    return weight


def importance() -> Tensor:
    """Spread as the inputs of models are: most within a factor of 20, some columns a hundred times as large."""
    generator = torch.Generator().manual_seed(2)
    spread = torch.randn(COLUMNS, generator=generator).mul_(1.5).exp_()
    spread[:: COLUMNS // 3] *= 100
    return spread


def error(values: Tensor, weight: Tensor, spread: Tensor) -> float:
    return float(((values - weight).square() * spread).sum(dtype=torch.float64))


@each
@pytest.mark.parametrize("tails", [False, True])
def test_with_an_importance_it_is_weighted(name: str, tails: bool) -> None:
    weight, spread = weights(tails), importance()
    ours = FORMATS[name].search(weight, spread).dequantize()
    theirs = decoded(encoded(weight, name, spread), name, len(weight))
    assert error(ours, weight, spread) <= 0.96 * error(theirs, weight, spread)


@each
def test_without_all_columns_count_alike(name: str) -> None:
    weight, even = weights(True), torch.ones(COLUMNS)
    ours = FORMATS[name].search(weight, even).dequantize()
    theirs = decoded(encoded(weight, name), name, len(weight))
    assert error(ours, weight, even) <= 0.97 * error(theirs, weight, even)


@each
def test_what_lies_on_the_type_s_grid_is_not_rounded_again(name: str) -> None:
    """Neither what llama.cpp made, but for a thousandth of what that cost, nor what we did."""
    weight, even = weights(False), torch.ones(COLUMNS)
    theirs = decoded(encoded(weight, name), name, len(weight))
    once = FORMATS[name].search(theirs, even).dequantize()
    assert error(once, theirs, even) <= 0.001 * error(theirs, weight, even)
    assert torch.equal(FORMATS[name].search(once, even).dequantize(), once)
