"""Few inputs times codes on tensor cores, the weight read once and never written: `kernels/product/multiply_codes.py`.

The weight is what a tensor core's rows are made of and the tokens its columns, of which 16 are the least: one token
wastes no row. 4-bit codes become numbers of 16 bits by setting the exponent (128 + q is 0x4300 | q in bf16, 1024 + q
is 0x6400 | q in fp16) and taking away the centre, both exact, without a conversion. Scales are applied to the sums of
a group, in fp32; where groups are of 16, to the numbers. Columns are split over programs where rows alone leave a GPU
idle; their sums are added in order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.kernels.gpu.decode_codes import code_of, weights_of
from compress.kernels.gpu.decode_codes import specialised as words_specialised
from compress.kernels.product.multiply_codes import FEW
from compress.kernels.product.words import CHUNK, STEP, Words

_PROGRAMS = 512
_LEAST_CHUNKS = 2


def takes(inputs: Tensor, weight: Words) -> bool:
    """Whether the kernel can: 1 … 64 tokens of 16 bits, each in one piece."""
    known = inputs.dtype in (torch.bfloat16, torch.float16)
    return known and inputs.ndim == 2 and 1 <= len(inputs) <= FEW and inputs.stride(1) == 1


def multiply_few(inputs: Tensor, weight: Words) -> Tensor:
    """See the reference."""
    rows, columns = weight.shape
    tokens = len(inputs)
    tiles, chunks = weight.low.shape[:2]
    splits = split(tiles, chunks)
    sums = sums_of(inputs, weight)
    result = torch.empty(tokens, rows, dtype=inputs.dtype, device=inputs.device)
    parts = result if splits == 1 else torch.empty(splits, tokens, rows, dtype=torch.float32, device=inputs.device)
    products[(tiles, splits)](
        *(inputs, weight.low, weight.high, levels(weight, inputs.dtype), weight.scale, weight.minimum, sums, parts),
        *(tokens, rows, columns, inputs.stride(0), weight.group, len(weight.scale), chunks),
        *(triton.cdiv(chunks, splits),),
        **specialised(tokens, weight, inputs.dtype),
        **launched(weight),
    )
    if splits > 1:
        add_parts(parts, result)
    return result


def add_parts(parts: Tensor, result: Tensor) -> None:
    """Write Σ `parts` [splits, …], in their order, into `result` […]."""
    count = result.numel()
    joined[(triton.cdiv(count, 1024),)](parts, result, count, SPLITS=len(parts), WIDTH=1024, enable_fp_fusion=True)


def split(programs: int, chunks: int) -> int:
    """Into how many parts columns are cut, if there are so many `programs` for each."""
    return max(1, min(_PROGRAMS // programs, chunks // _LEAST_CHUNKS))


def levels(weight: Words, dtype: torch.dtype) -> Tensor | None:
    """The table, if there is one: as inputs are, or, where scales are applied to its numbers, nearly as it is."""
    return None if weight.table is None else weight.table.to(torch.float16 if weight.fine else dtype)


def specialised(tokens: int, weight: Words, dtype: torch.dtype) -> dict[str, Any]:
    """The kernel's constants: among them how many lanes have one scale."""
    whole = CHUNK % weight.group or weight.fine
    return words_specialised(weight) | {
        "TOKENS": max(16, triton.next_power_of_2(tokens)),
        "LANES": (CHUNK if whole else weight.group) // STEP,
        "HALF": dtype == torch.float16,
        "EVEN": weight.shape[1] % CHUNK == 0,
    }


def launched(weight: Words) -> dict[str, Any]:
    """How the kernel is compiled: two scales to a step leave no registers for more stages."""
    return {"num_warps": 4, "num_stages": 2 if weight.fine else 4, "enable_fp_fusion": True}


def sums_of(inputs: Tensor, weight: Words) -> Tensor | None:
    """Σ x of each group, [tokens, groups] fp32: what a minimum is multiplied with, if that is done to sums."""
    if weight.minimum is None or weight.fine:
        return None
    return torch.sum(inputs.unflatten(1, (-1, weight.group)), 2, dtype=torch.float32)


@triton.jit
def products(
    inputs: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    table: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    sums: tl.tensor,
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
    TOKENS: tl.constexpr,
    LANES: tl.constexpr,
    HALF: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:
    """64 rows of the result over `steps` chunks of columns: `result` [splits, tokens, rows]."""
    tile, part = tl.program_id(0), tl.program_id(1)
    row = tile * TILE + tl.arange(0, TILE)
    token = tl.arange(0, TOKENS)
    start, begin, end = tile.to(tl.int64) * chunks * (TILE * STEP), part * steps, tl.minimum((part + 1) * steps, chunks)
    total = added(
        inputs, low, high, table, scale, minimum, sums, token, token < tokens, row, start, begin, end, rows, columns,
        stride, group, groups, LOW, HIGH, CENTER, TILE, STEP, FINE, TOKENS, LANES, HALF, EVEN,
    )  # fmt: skip
    at_result = result + (part * tokens + token[None, :]) * rows + row[:, None]
    tl.store(at_result, total.to(result.dtype.element_ty), mask=(row[:, None] < rows) & (token[None, :] < tokens))


@triton.jit
def added(
    inputs: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    table: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    sums: tl.tensor,
    token: tl.tensor,
    seen: tl.tensor,
    row: tl.tensor,
    start: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    group: tl.tensor,
    groups: tl.tensor,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    CENTER: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    FINE: tl.constexpr,
    TOKENS: tl.constexpr,
    LANES: tl.constexpr,
    HALF: tl.constexpr,
    EVEN: tl.constexpr,
) -> tl.tensor:
    """The products [TILE, TOKENS] fp32 of the tile whose words begin at `start` and of the `token`s that are `seen`.

    Chunks of columns from `begin` up to `end`.
    """
    place = tl.arange(0, STEP)
    words = tl.arange(0, TILE)[:, None] * STEP + place[None, :]
    x_at = inputs + token[None, :].to(tl.int64) * stride + place[:, None]
    there = seen[None, :] & (place[:, None] < STEP)
    total = tl.zeros((TILE, TOKENS), dtype=tl.float32)
    for chunk in range(begin, end):
        first = tl.load(low + start + chunk * (TILE * STEP) + words).to(tl.int32)
        second = first
        if HIGH:
            second = tl.load(high + start + chunk * (TILE * STEP) + words).to(tl.int32)
        for lanes in tl.static_range(0, 8, LANES):
            part_sum = tl.zeros((TILE, TOKENS), dtype=tl.float32)
            for lane in tl.static_range(lanes, lanes + LANES):
                code = code_of(first, second, lane, LOW, HIGH)
                column = (chunk * 8 + lane) * STEP
                inside = there if EVEN else there & (column + place[:, None] < columns)
                x = tl.load(x_at + column, mask=inside, other=0.0)
                if FINE:
                    value = weights_of(
                        code, table, scale, minimum, row, rows, column, place, group, groups, CENTER, FINE
                    )
                elif table is not None:
                    value = tl.load(table + code)
                elif HALF:
                    value = (code | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - (1024.0 + CENTER)
                elif LOW + HIGH < 8:
                    value = (code | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True) - (128.0 + CENTER)
                else:
                    value = (code - CENTER).to(tl.float32)
                part_sum = tl.dot(value.to(x.dtype), x, part_sum)
            at = (chunk * 8 + lanes) * STEP // group
            here = (row < rows) & (at < groups)
            if FINE:
                total += part_sum
            else:
                total += part_sum * tl.load(scale + at * rows + row, mask=here, other=0.0).to(tl.float32)[:, None]
                # A group that goes over several chunks has its minimum once.
                if minimum is not None:  # noqa: SIM102 - known when compiled, the other when run
                    if (chunk * 8 + lanes) * STEP % group == 0:
                        least = tl.load(minimum + at * rows + row, mask=here, other=0.0)
                        whole = tl.load(sums + token * groups + at, mask=seen & (at < groups), other=0.0)
                        total += least[:, None] * whole[None, :]
    return total


@triton.jit
def joined(parts: tl.tensor, result: tl.tensor, count: tl.tensor, SPLITS: tl.constexpr, WIDTH: tl.constexpr) -> None:
    """The sum of `parts` [splits, count], in their order."""
    at = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for part in range(SPLITS):
        total += tl.load(parts + part * count + at, mask=at < count, other=0.0)
    tl.store(result + at, total.to(result.dtype.element_ty), mask=at < count)
