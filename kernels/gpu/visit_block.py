"""The columns of a GPTQ block in one launch: what `kernels/solve/gptq.py` does with some 32 for each column.

Rows are independent: a program takes 16, keeps the errors that they have made so far in registers, and goes through
the columns in their order. Each is one line of memory, as matrices come transposed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.qtensor import NumberFormat, Params

_ROWS = 16
_MOST = 128


def takes(
    source: Tensor,
    target: Tensor,
    errors: Tensor,
    codes: Tensor,
    feed: Tensor,
    number_format: NumberFormat,
    spread: Params,
    kept: Tensor | None,
) -> bool:
    """Whether the kernel can: evenly spaced values, up to 128 columns, each in one piece of fp32."""
    even = isinstance(number_format, IntFormat | KAffineFormat) and len(source) <= _MOST
    lines = (source, target, errors, codes, *spread.values(), *(() if kept is None else (kept,)))
    whole = all(each.is_contiguous() for each in lines) and feed.stride(1) == 1
    return even and whole and all(each.dtype == torch.float32 for each in (source, target, errors, feed))


def visit_block(
    source: Tensor,
    target: Tensor,
    errors: Tensor,
    codes: Tensor,
    feed: Tensor,
    number_format: NumberFormat,
    spread: Params,
    kept: Tensor | None,
) -> None:
    """See the reference."""
    columns, rows = source.shape
    visit[(triton.cdiv(rows, _ROWS),)](
        *(source, target, errors, codes, feed, spread["scale"], spread.get("zero"), spread.get("minimum")),
        *(None if kept is None else kept.view(torch.uint8), columns, rows, feed.stride(0)),
        **specialised(columns, number_format.levels),
        **launched(),
    )


def specialised(columns: int, levels: int) -> dict[str, Any]:
    """The kernel's constants."""
    return {"LEVELS": levels, "BLOCK": max(16, triton.next_power_of_2(columns)), "ROWS": _ROWS}


def launched() -> dict[str, Any]:
    """How the kernel is compiled."""
    return {"num_warps": 2, "num_stages": 2, "enable_fp_fusion": True}


@triton.jit
def visit(
    source: tl.tensor,
    target: tl.tensor,
    errors: tl.tensor,
    codes: tl.tensor,
    feed: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    minimum: tl.tensor,
    kept: tl.tensor,
    columns: tl.tensor,
    rows: tl.tensor,
    stride: tl.tensor,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """16 rows; `feed` is [columns, columns], rows of it `stride` apart, and all others are [columns, rows]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = row < rows
    made = tl.zeros((BLOCK, ROWS), dtype=tl.float32)
    for at in range(0, columns):
        line = at * rows + row
        weights = tl.load(feed + at * stride + column, mask=column < at, other=0.0)
        visited = tl.load(target + line, mask=inside, other=0.0) + tl.sum(made * weights[:, None], 0)
        tl.store(target + line, visited, mask=inside)
        if kept is not None:
            visited = tl.where(tl.load(kept + line, mask=inside, other=0) != 0, visited, 0.0)
        code, value = rounded(visited, scale, zero, minimum, line, inside, LEVELS)
        error = tl.load(source + line, mask=inside, other=0.0) - value
        tl.store(codes + line, code.to(tl.uint8), mask=inside)
        tl.store(errors + line, error, mask=inside)
        made = tl.where(column[:, None] == at, error[None, :], made)


@triton.jit
def rounded(
    visited: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    minimum: tl.tensor,
    line: tl.tensor,
    inside: tl.tensor,
    LEVELS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The codes nearest to `visited`, whose parameters lie at `line`, and what they stand for."""
    step = tl.load(scale + line, mask=inside, other=1.0)
    least = visited * 0.0
    if minimum is not None:
        least = tl.load(minimum + line, mask=inside, other=0.0)
    offset = least * 0.0
    if minimum is None:
        offset += LEVELS // 2
    if zero is not None:
        offset = tl.load(zero + line, mask=inside, other=0.0)
    steps = tl.div_rn(visited - least, step)
    # To the nearest whole number, ties to even, for what is not clamped anyway; 0 of 0 steps is 0.
    code = (steps + 12582912.0) - 12582912.0 + offset
    code = tl.minimum(tl.maximum(tl.where(steps == steps, code, 0.0), 0.0), LEVELS - 1.0)
    return code, (code - offset) * step + least
