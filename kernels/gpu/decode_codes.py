"""A weight in words, written out: `kernels/product/multiply_codes.py`; and how kernels read words."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.kernels.product.words import STEP, TILE, Words


def takes(weight: Words, dtype: torch.dtype) -> bool:
    """Whether the kernel can: a result that has a type of products."""
    return dtype in (torch.bfloat16, torch.float16, torch.float32)


def decode_codes(weight: Words, dtype: torch.dtype) -> Tensor:
    """See the reference."""
    rows, columns = weight.shape
    result = torch.empty(rows, columns, dtype=dtype, device=weight.low.device)
    decoded[weight.low.shape[:2]](
        *(weight.low, weight.high, weight.table, weight.scale, weight.minimum, result),
        *(rows, columns, weight.group, len(weight.scale), weight.low.shape[1]),
        **specialised(weight),
    )
    return result


def specialised(weight: Words) -> dict[str, Any]:
    """The kernel's constants."""
    low, high = weight.widths
    return {"LOW": low, "HIGH": high, "CENTER": weight.center, "TILE": TILE, "STEP": STEP}


@triton.jit
def decoded(
    low: tl.tensor,
    high: tl.tensor,
    table: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    result: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    group: tl.tensor,
    groups: tl.tensor,
    chunks: tl.tensor,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    CENTER: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """One chunk of 64 rows: `result` [rows, columns]."""
    tile, chunk = tl.program_id(0), tl.program_id(1)
    row = tile * TILE + tl.arange(0, TILE)
    place = tl.arange(0, STEP)
    words = (tile * chunks + chunk).to(tl.int64) * (TILE * STEP)
    words += tl.arange(0, TILE)[:, None] * STEP + place[None, :]
    first = tl.load(low + words).to(tl.int32)
    second = first
    if HIGH:
        second = tl.load(high + words).to(tl.int32)
    start = result + row[:, None].to(tl.int64) * columns + place[None, :]
    for lane in tl.static_range(0, 8):
        column = (chunk * 8 + lane) * STEP
        value = weights_of(
            code_of(first, second, lane, LOW, HIGH), table, scale, minimum, column // group, groups, row, rows, CENTER
        )
        inside = (row[:, None] < rows) & (column + place[None, :] < columns)
        tl.store(start + column, value.to(result.dtype.element_ty), mask=inside)


@triton.jit
def code_of(first: tl.tensor, second: tl.tensor, lane: tl.tensor, LOW: tl.constexpr, HIGH: tl.constexpr) -> tl.tensor:
    """The codes, int32, in that lane of words of both planes."""
    code = (first >> (LOW * lane)) & ((1 << LOW) - 1)
    if HIGH:
        code = code | (((second >> (HIGH * lane)) & ((1 << HIGH) - 1)) << LOW)
    return code


@triton.jit
def weights_of(
    code: tl.tensor,
    table: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    at: tl.tensor,
    groups: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    CENTER: tl.constexpr,
) -> tl.tensor:
    """What codes [rows, places] of the group `at` stand for, fp32: 2²³ + q has the bits 0x4B000000 | q, exactly."""
    if table is not None:
        value = tl.load(table + code).to(tl.float32)
    else:
        value = (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + CENTER)
    here = (row < rows) & (at < groups)
    value *= tl.load(scale + at * rows + row, mask=here, other=0.0).to(tl.float32)[:, None]
    if minimum is not None:
        value += tl.load(minimum + at * rows + row, mask=here, other=0.0)[:, None]
    return value
