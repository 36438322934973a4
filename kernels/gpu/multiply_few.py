"""Few inputs times codes on tensor cores, the weight read once and never written: `kernels/product/multiply_codes.py`.

The weight is what a tensor core's rows are made of and the tokens its columns, of which 16 are the least: one token
wastes no row. 4-bit codes become numbers of 16 bits by setting the exponent (128 + q is 0x4300 | q in bf16, 1024 + q
is 0x6400 | q in fp16) and taking away the centre, both exact, without a conversion. Scales are applied to the sums of
a group, in fp32. Columns are split over programs where rows alone leave a GPU idle; their sums are added in order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.kernels.gpu.decode_codes import code_of
from compress.kernels.gpu.decode_codes import specialised as words_specialised
from compress.kernels.product.multiply_codes import FEW
from compress.kernels.product.words import CHUNK, Words
from compress.kernels.product.words import STEP as _STEP

_PROGRAMS = 512
_LEAST_CHUNKS = 2


def takes(inputs: Tensor, weight: Words) -> bool:
    """Whether the kernel can: 1 … 64 tokens of 16 bits, each in one piece; groups of whole steps."""
    known = inputs.dtype in (torch.bfloat16, torch.float16) and weight.group % _STEP == 0
    return known and inputs.ndim == 2 and 1 <= len(inputs) <= FEW and inputs.stride(1) == 1


def multiply_few(inputs: Tensor, weight: Words) -> Tensor:
    """See the reference."""
    rows, columns = weight.shape
    tokens = len(inputs)
    tiles, chunks = weight.low.shape[:2]
    splits = split(tiles, chunks)
    sums = _sums(inputs, weight)
    result = torch.empty(tokens, rows, dtype=inputs.dtype, device=inputs.device)
    parts = result if splits == 1 else torch.empty(splits, tokens, rows, dtype=torch.float32, device=inputs.device)
    table = None if weight.table is None else weight.table.to(inputs.dtype)
    products[(tiles, splits)](
        *(inputs, weight.low, weight.high, table, weight.scale, weight.minimum, sums, parts),
        *(tokens, rows, columns, inputs.stride(0), weight.group, len(weight.scale), chunks),
        *(triton.cdiv(chunks, splits),),
        **specialised(tokens, weight, inputs.dtype),
        **launched(),
    )
    if splits > 1:
        add_parts(parts, result)
    return result


def add_parts(parts: Tensor, result: Tensor) -> None:
    """Write Σ `parts` [splits, …], in their order, into `result` […]."""
    count = result.numel()
    joined[(triton.cdiv(count, 1024),)](parts, result, count, SPLITS=len(parts), WIDTH=1024)


def split(tiles: int, chunks: int) -> int:
    """Into how many parts columns are cut."""
    return max(1, min(_PROGRAMS // tiles, chunks // _LEAST_CHUNKS))


def specialised(tokens: int, weight: Words, dtype: torch.dtype) -> dict[str, Any]:
    """The kernel's constants."""
    shared = words_specialised(weight)
    del shared["FINE"]  # there are none
    return shared | {
        "TOKENS": max(16, triton.next_power_of_2(tokens)),
        "LANES": min(weight.group, CHUNK) // _STEP if CHUNK % weight.group == 0 else CHUNK // _STEP,
        "HALF": dtype == torch.float16,
        "EVEN": weight.shape[1] % CHUNK == 0,
    }


def launched() -> dict[str, Any]:
    """How the kernel is compiled."""
    return {"num_warps": 4, "num_stages": 4, "enable_fp_fusion": True}


def _sums(inputs: Tensor, weight: Words) -> Tensor | None:
    """Σ x of each group, [tokens, groups] fp32: what a minimum is multiplied with."""
    if weight.minimum is None:
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
    TOKENS: tl.constexpr,
    LANES: tl.constexpr,
    HALF: tl.constexpr,
    EVEN: tl.constexpr,
) -> None:
    """64 rows of the result over `steps` chunks of columns: `result` [splits, tokens, rows]."""
    tile, part = tl.program_id(0), tl.program_id(1)
    row = tile * TILE + tl.arange(0, TILE)
    token = tl.arange(0, TOKENS)
    place = tl.arange(0, STEP)
    words = tl.arange(0, TILE)[:, None] * STEP + place[None, :]
    x_at = inputs + token[None, :].to(tl.int64) * stride + place[:, None]
    there = (token[None, :] < tokens) & (place[:, None] < STEP)
    total = tl.zeros((TILE, TOKENS), dtype=tl.float32)
    for chunk in range(part * steps, tl.minimum((part + 1) * steps, chunks)):
        start = (tile * chunks + chunk).to(tl.int64) * (TILE * STEP)
        first = tl.load(low + start + words).to(tl.int32)
        second = first
        if HIGH:
            second = tl.load(high + start + words).to(tl.int32)
        for begin in tl.static_range(0, 8, LANES):
            part_sum = tl.zeros((TILE, TOKENS), dtype=tl.float32)
            for lane in tl.static_range(begin, begin + LANES):
                code = code_of(first, second, lane, LOW, HIGH)
                column = (chunk * 8 + lane) * STEP
                inside = there if EVEN else there & (column + place[:, None] < columns)
                x = tl.load(x_at + column, mask=inside, other=0.0)
                if table is not None:
                    value = tl.load(table + code)
                elif HALF:
                    value = (code | 0x6400).to(tl.int16).to(tl.float16, bitcast=True) - (1024.0 + CENTER)
                elif LOW + HIGH < 8:
                    value = (code | 0x4300).to(tl.int16).to(tl.bfloat16, bitcast=True) - (128.0 + CENTER)
                else:
                    value = (code - CENTER).to(tl.float32)
                part_sum = tl.dot(value.to(x.dtype), x, part_sum)
            at = (chunk * 8 + begin) * STEP // group
            here = (row < rows) & (at < groups)
            total += part_sum * tl.load(scale + at * rows + row, mask=here, other=0.0).to(tl.float32)[:, None]
            # A group that goes over several chunks has its minimum once.
            if minimum is not None:  # noqa: SIM102 - known when compiled, the other when run
                if (chunk * 8 + begin) * STEP % group == 0:
                    least = tl.load(minimum + at * rows + row, mask=here, other=0.0)
                    whole = tl.load(sums + token * groups + at, mask=(token < tokens) & (at < groups), other=0.0)
                    total += least[:, None] * whole[None, :]
    at_result = result + (part * tokens + token[None, :]) * rows + row[:, None]
    tl.store(at_result, total.to(result.dtype.element_ty), mask=(row[:, None] < rows) & (token[None, :] < tokens))


@triton.jit
def joined(parts: tl.tensor, result: tl.tensor, count: tl.tensor, SPLITS: tl.constexpr, WIDTH: tl.constexpr) -> None:
    """The sum of `parts` [splits, count], in their order."""
    at = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), dtype=tl.float32)
    for part in range(SPLITS):
        total += tl.load(parts + part * count + at, mask=at < count, other=0.0)
    tl.store(result + at, total.to(result.dtype.element_ty), mask=at < count)
