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
        enable_fp_fusion=True,
    )
    return result


def specialised(weight: Words) -> dict[str, Any]:
    """The kernel's constants."""
    low, high = weight.widths
    return {"LOW": low, "HIGH": high, "CENTER": weight.center, "TILE": TILE, "STEP": STEP, "FINE": weight.fine}


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
    FINE: tl.constexpr,
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
        code = code_of(first, second, lane, LOW, HIGH)
        value = weights_of(code, table, scale, minimum, row, rows, column, place, group, groups, CENTER, FINE)
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
    row: tl.tensor,
    rows: tl.tensor,
    column: tl.tensor,
    place: tl.tensor,
    group: tl.tensor,
    groups: tl.tensor,
    CENTER: tl.constexpr,
    FINE: tl.constexpr,
) -> tl.tensor:
    """What codes [rows, places] from `column` on stand for, fp32: 2²³ + q has the bits 0x4B000000 | q, exactly.

    `FINE`: they have two scales each, in groups of half as many; else that of their first column.
    """
    if table is not None:
        value = tl.load(table + code).to(tl.float32)
    else:
        value = (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + CENTER)
    at = column // group
    value *= parameter_of(scale, row, rows, at, place, group, groups, FINE)
    if minimum is not None:
        value += parameter_of(minimum, row, rows, at, place, group, groups, FINE)
    return value


@triton.jit
def parameter_of(
    parameter: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    at: tl.tensor,
    place: tl.tensor,
    group: tl.tensor,
    groups: tl.tensor,
    FINE: tl.constexpr,
) -> tl.tensor:
    """Of the group `at`, or of that and the next: [rows, 1 or places] fp32. One by one: few enough to need no room."""
    found = tl.load(parameter + at * rows + row, mask=(row < rows) & (at < groups), other=0.0).to(tl.float32)[:, None]
    if FINE:
        following = parameter + (at + 1) * rows + row
        other = tl.load(following, mask=(row < rows) & (at + 1 < groups), other=0.0).to(tl.float32)[:, None]
        found = tl.where(place[None, :] < group, found, other)
    return found
