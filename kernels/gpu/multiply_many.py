"""Many inputs times codes on tensor cores: `kernels/product/multiply_codes.py`.

Weights are decoded in registers, which is where tensor cores take the operand from whose rows are the result's, and
rounded as a decoded matrix is. Programs beside each other have the same weights and other tokens; columns are split
where there are too few programs for a GPU, and their sums are added in order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.kernels.gpu.decode_codes import code_of, weights_of
from compress.kernels.gpu.decode_codes import specialised as words_specialised
from compress.kernels.gpu.multiply_few import add_parts
from compress.kernels.product.words import CHUNK, Words

ROWS = 128
_PROGRAMS = 132
"""As many as an H100 has processors."""
_LEAST_CHUNKS = 4


def takes(inputs: Tensor, weight: Words) -> bool:
    """Whether the kernel can: tokens of 16 bits, each in one piece."""
    known = inputs.dtype in (torch.bfloat16, torch.float16)
    return known and inputs.ndim == 2 and len(inputs) > 0 and inputs.stride(1) == 1


def multiply_many(inputs: Tensor, weight: Words) -> Tensor:
    """See the reference."""
    (tokens, columns), rows = inputs.shape, weight.shape[0]
    chunks = weight.low.shape[1]
    block = at_a_time(tokens, capability(inputs))
    blocks, tiles = triton.cdiv(tokens, block), triton.cdiv(rows, ROWS)
    splits = split(blocks * tiles, chunks)
    result = torch.empty(tokens, rows, dtype=inputs.dtype, device=inputs.device)
    parts = result if splits == 1 else torch.empty(splits, tokens, rows, dtype=torch.float32, device=inputs.device)
    products[(blocks, tiles, splits)](
        *(inputs, weight.low, weight.high, levels(weight), weight.scale, weight.minimum, parts),
        *(tokens, rows, columns, inputs.stride(0), weight.group, len(weight.scale), chunks),
        *(triton.cdiv(chunks, splits),),
        **specialised(weight, block),
        **launched(),
    )
    if splits > 1:
        add_parts(parts, result)
    return result


def capability(inputs: Tensor) -> tuple[int, int]:
    """Of the GPU that they are on; what is interpreted goes as on an H100."""
    return torch.cuda.get_device_capability(inputs.device) if inputs.is_cuda else (9, 0)


def split(programs: int, chunks: int) -> int:
    """Into how many parts columns are cut, if there are so many `programs` for each."""
    return max(1, min(_PROGRAMS // programs, chunks // _LEAST_CHUNKS))


def at_a_time(tokens: int, capability: tuple[int, int]) -> int:
    """Tokens of a block: most where tensor cores read them from shared memory, which leaves registers free."""
    enough: int = triton.next_power_of_2(tokens)
    return max(16, min(enough, 128 if capability >= (9, 0) else 64))


def levels(weight: Words) -> Tensor | None:
    """The table, if there is one: fp32 it would go through shared memory, and fill that."""
    return None if weight.table is None else weight.table.half()


def specialised(weight: Words, tokens: int) -> dict[str, Any]:
    """The kernel's constants."""
    return words_specialised(weight) | {"EVEN": weight.shape[1] % CHUNK == 0, "ROWS": ROWS, "TOKENS": tokens}


def launched() -> dict[str, Any]:
    """How the kernel is compiled."""
    return {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}


@triton.jit
def products(
    inputs: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    table: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    result: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    group: tl.tensor,
    groups: tl.tensor,
    chunks: tl.tensor,
    steps: tl.tensor,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    CENTER: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    FINE: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    """A block of the result over `steps` chunks of columns: `result` [splits, tokens, rows]."""
    part = tl.program_id(2)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    total = added(
        inputs, low, high, table, scale, minimum, tl.minimum(token, tokens - 1), row, 0, part * steps,
        tl.minimum((part + 1) * steps, chunks), rows, columns, stride, group, groups, chunks,
        LOW, HIGH, CENTER, TILE, STEP, FINE, EVEN, ROWS, TOKENS,
    )  # fmt: skip
    at_result = result + (part * tokens + token[None, :].to(tl.int64)) * rows + row[:, None]
    tl.store(at_result, total.to(result.dtype.element_ty), mask=(row[:, None] < rows) & (token[None, :] < tokens))


@triton.jit
def added(
    inputs: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    table: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    token: tl.tensor,
    row: tl.tensor,
    start: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    group: tl.tensor,
    groups: tl.tensor,
    chunks: tl.tensor,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    CENTER: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    FINE: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> tl.tensor:
    """The products [ROWS, TOKENS] fp32 of the `row`s of the weight whose words begin at `start` and of the `token`s.

    Chunks of columns from `begin` up to `end`.
    """
    place = tl.arange(0, STEP)
    # Rows beyond the last are read as the last.
    near = tl.minimum(row, rows - 1)
    words = (near // TILE).to(tl.int64)[:, None] * (chunks * TILE * STEP) + (near % TILE)[:, None] * STEP
    words += start + place[None, :]
    x_at = inputs + token[None, :].to(tl.int64) * stride + place[:, None]
    total = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
    for chunk in range(begin, end):
        first = tl.load(low + words + chunk * (TILE * STEP)).to(tl.int32)
        second = first
        if HIGH:
            second = tl.load(high + words + chunk * (TILE * STEP)).to(tl.int32)
        for lane in tl.static_range(0, 8):
            column = (chunk * 8 + lane) * STEP
            code = code_of(first, second, lane, LOW, HIGH)
            value = weights_of(code, table, scale, minimum, row, rows, column, place, group, groups, CENTER, FINE)
            if EVEN:
                x = tl.load(x_at + column)
            else:
                x = tl.load(x_at + column, mask=(column + place < columns)[:, None], other=0.0)
            total = tl.dot(value.to(x.dtype), x, total)
    return total
