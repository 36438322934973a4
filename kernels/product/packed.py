"""torch's own products of bf16 inputs with packed 4- and 8-bit codes on a CPU, and whether they pay here.

Few rows of inputs take as long as the weight takes to come from memory, so that a quarter of the bytes is a quarter of
the time; many rows do not, and torch's kernels then take longer than a dense product. Where the line is depends on
the processor (AVX512, AMX), so it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from compress.kernels.fallbacks import count
from compress.kernels.numbers.int import IntFormat
from compress.kernels.product.levels import levels_of
from compress.kernels.qtensor import QTensor

Product = Callable[[Tensor], Tensor]

_GROUPS = (32, 64, 128, 256)
_LEAST = 1 << 16
"""Weights of a matrix that is worth it: calls take as long as smaller ones."""
_FEW = (1, 8)
_GAIN = 0.8
_TRIES = 8
_COLD = 1 << 24
"""Bytes that the measurement goes through before it meets a weight again: a model leaves none in a core's cache."""


class Few(NamedTuple):
    """`product` takes inputs [n, columns], n ≤ `most`, and gives [n, rows] in their type."""

    product: Product
    most: int


def packed(weight: QTensor) -> Few | None:
    """The product with few inputs that is quicker here than a dense one; None if torch has none or it is not.

    It computes in bf16: inputs, scales and minima are rounded to that, sums are fp32.
    """
    rows, columns = weight.shape
    if weight.codes.device.type != "cpu" or rows * columns < _LEAST:
        return None
    make = next((make for fits, make in _WAYS if fits(weight)), None)
    if make is None:
        count(f"products with {weight.format.name} are dense ones: torch has none with its codes")
        return None
    most = _most_rows(make, rows, columns, weight.format.groups(weight.shape))
    return Few(make(weight), most) if most else None


def _fits_int4(weight: QTensor) -> bool:
    rows, columns = weight.shape
    if weight.format.levels > 16 or rows % 16 or (levels := levels_of(weight)) is None:
        return False
    return levels.even and columns // levels.scale.shape[1] in _GROUPS


def int4(weight: QTensor) -> Product:
    """The product with codes 0 … 15 of groups that torch knows; rows a multiple of 16."""
    levels = levels_of(weight)
    assert levels is not None
    group = weight.shape[1] // levels.scale.shape[1]
    # torch's codes count from −8, ŵ = s·(q − 8) + z: those of fewer bits go to the middle, where z is small.
    half = weight.format.levels // 2
    words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes.int() + (8 - half), 1)
    middle = levels.minimum + half * levels.scale
    scales = torch.stack([levels.scale.T, middle.T], 2).bfloat16().contiguous()

    def product(inputs: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(inputs.bfloat16(), words, group, scales)
        return found.to(inputs.dtype)

    return product


def _fits_int8(weight: QTensor) -> bool:
    known = weight.format
    return isinstance(known, IntFormat) and known.bits == 8 and known.zero == "middle" and _single(weight)


def _single(weight: QTensor) -> bool:
    return weight.format.groups(weight.shape) == 1 and weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0


def int8(weight: QTensor) -> Product:
    """The product with codes −128 … 127 and one scale a row; rows and columns multiples of 16."""
    codes = (weight.codes.short() - 128).char()
    scales = weight.format.reals(weight.params)["scale"].flatten().bfloat16()

    def product(inputs: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten._weight_int8pack_mm(inputs.bfloat16(), codes, scales)
        return found.to(inputs.dtype)

    return product


_WAYS = ((_fits_int4, int4), (_fits_int8, int8))


@cache
def _most_rows(make: Callable[[QTensor], Product], rows: int, columns: int, groups: int) -> int:
    """Up to how many inputs at a time the packed product is quicker here, by a fifth at least; 0 if never."""
    copies = max(1, _COLD // (4 * rows * columns))
    number_format = IntFormat(4 if make is int4 else 8, columns // groups)
    params = {"scale": torch.ones(rows, groups, dtype=torch.float16)}
    weight = QTensor(number_format, torch.zeros(rows, columns, dtype=torch.uint8), params)
    short = [make(weight) for _ in range(copies)]
    dense = [partial(_dense, each) for each in torch.ones(copies, rows, columns)]
    most = 0
    for few in _FEW:
        x = torch.ones(few, columns)
        if _seconds(short, x) > _GAIN * _seconds(dense, x):
            break
        most = few
    return most


def _dense(weight: Tensor, inputs: Tensor) -> Tensor:
    return linear(inputs, weight)


def _seconds(products: Sequence[Product], inputs: Tensor) -> float:
    """The least that any takes: other processes only slow it down."""
    best = float("inf")
    for number in range(max(_TRIES, len(products))):
        started = time.perf_counter()
        products[number % len(products)](inputs)
        best = min(best, time.perf_counter() - started)
    return best
