"""The columns of a block once more, in one launch: what `kernels/solve/tune.py` does with some 48 for each column.

As in `visit_block` a program takes 16 rows, keeps what it has changed in registers, and goes through the columns.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, uint8

from compress.kernels.gpu import visit_block
from compress.kernels.gpu.visit_block import rounded
from compress.kernels.qtensor import NumberFormat, Params


def takes(
    source: Tensor,
    owed: Tensor,
    errors: Tensor,
    codes: Tensor,
    feed: Tensor,
    number_format: NumberFormat,
    spread: Params,
    kept: Tensor | None,
) -> bool:
    """Whether the kernel can: what `visit_block` can."""
    return visit_block.takes(source, owed, errors, codes, feed, number_format, spread, kept)


def revisit_block(
    source: Tensor,
    owed: Tensor,
    errors: Tensor,
    codes: Tensor,
    feed: Tensor,
    number_format: NumberFormat,
    spread: Params,
    kept: Tensor | None,
) -> None:
    """See the reference."""
    columns, rows = source.shape
    constants = visit_block.specialised(columns, number_format.levels)
    revisit[(triton.cdiv(rows, constants["ROWS"]),)](
        *(source, owed, errors, codes, feed, spread["scale"], spread.get("zero"), spread.get("minimum")),
        *(None if kept is None else kept.view(uint8), columns, rows, feed.stride(0)),
        **constants,
        **visit_block.launched(),
    )


@triton.jit
def revisit(
    source: tl.tensor,
    owed: tl.tensor,
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
    changes = tl.zeros((BLOCK, ROWS), dtype=tl.float32)
    for at in range(0, columns):
        line = at * rows + row
        weights = tl.load(feed + at * stride + column, mask=column < at, other=0.0)
        weight = tl.load(source + line, mask=inside, other=0.0)
        visited = weight + tl.load(owed + line, mask=inside, other=0.0) + tl.sum(changes * weights[:, None], 0)
        if kept is not None:
            visited = tl.where(tl.load(kept + line, mask=inside, other=0) != 0, visited, 0.0)
        code, value = rounded(visited, scale, zero, minimum, line, inside, LEVELS)
        error = weight - value
        change = error - tl.load(errors + line, mask=inside, other=0.0)
        tl.store(codes + line, code.to(tl.uint8), mask=inside)
        tl.store(errors + line, error, mask=inside)
        changes = tl.where(column[:, None] == at, change[None, :], changes)
