"""Inputs times the weights of experts in one launch: `kernels/product/multiply_experts.py`.

A program takes one block of the inputs of one expert, which it finds in `ends` by itself: nothing is waited for, and
as many programs are started as there could be blocks. What it does with them is what `multiply_few` or, where experts
have many inputs each, `multiply_many` does.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.kernels.gpu import multiply_few as few
from compress.kernels.gpu import multiply_many as many
from compress.kernels.gpu.multiply_few import added as added_few
from compress.kernels.gpu.multiply_many import added as added_many
from compress.kernels.product.multiply_codes import FEW
from compress.kernels.product.stack import Stack
from compress.kernels.product.words import TILE, Words


def takes(inputs: Tensor, weights: Stack, ends: Tensor) -> bool:
    """Whether the kernel can: inputs of 16 bits, each in one piece."""
    known = inputs.dtype in (torch.bfloat16, torch.float16) and ends.dtype == torch.int32 and ends.is_contiguous()
    return known and inputs.ndim == 2 and len(inputs) > 0 and inputs.stride(1) == 1


def multiply_experts(inputs: Tensor, weights: Stack, ends: Tensor) -> Tensor:
    """See the reference."""
    words, tokens = weights.words, len(inputs)
    (rows, columns), (tiles, chunks) = words.shape, words.low.shape[1:3]
    constants, options = compiled(tokens, weights, inputs.dtype, many.capability(inputs))
    # Each expert has one block that is not full, at most.
    blocks = min(tokens, tokens // constants["TOKENS"] + weights.count)
    high = triton.cdiv(rows, constants["ROWS"])
    splits = (few if constants["IS_FEW"] else many).split(blocks * high, chunks)
    result = torch.empty(tokens, rows, dtype=inputs.dtype, device=inputs.device)
    parts = result if splits == 1 else torch.empty(splits, tokens, rows, dtype=torch.float32, device=inputs.device)
    table, sums = prepared(inputs, words, constants["IS_FEW"])
    products[(blocks, high, splits)](
        *(inputs, ends, words.low, words.high, table, words.scale, words.minimum, sums, parts),
        *(weights.count, tokens, rows, columns, inputs.stride(0), words.group, words.scale.shape[1]),
        *(tiles, chunks, triton.cdiv(chunks, splits)),
        **constants,
        **options,
    )
    if splits > 1:
        few.add_parts(parts, result)
    return result


def compiled(
    tokens: int, weights: Stack, dtype: torch.dtype, capability: tuple[int, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kernel's constants, and how it is compiled, for so many tokens in all; experts have unequally many."""
    words, each = weights.words, triton.cdiv(tokens, weights.count)
    shared = {"IS_FEW": each <= FEW, "EXPERTS": triton.next_power_of_2(weights.count)}
    if shared["IS_FEW"]:
        return few.specialised(min(2 * each, FEW), words, dtype) | shared | {"ROWS": TILE}, few.launched(words)
    own = many.specialised(words, many.at_a_time(each, capability))
    # Before the H100 two stages leave a table's kernel too few registers.
    stages = {"num_stages": 2 if capability >= (9, 0) else 3}
    return own | shared | {"LANES": 8, "HALF": False}, many.launched() | stages


def prepared(inputs: Tensor, words: Words, is_few: bool) -> tuple[Tensor | None, Tensor | None]:
    """The table, and what minima are multiplied with, as each of the two has them."""
    if is_few:
        return few.levels(words, inputs.dtype), few.sums_of(inputs, words)
    return many.levels(words), None


@triton.jit
def products(
    inputs: tl.tensor,
    ends: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    table: tl.tensor,
    scale: tl.tensor,
    minimum: tl.tensor,
    sums: tl.tensor,
    result: tl.tensor,
    experts: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    group: tl.tensor,
    groups: tl.tensor,
    tiles: tl.tensor,
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
    LANES: tl.constexpr,
    HALF: tl.constexpr,
    IS_FEW: tl.constexpr,
    EXPERTS: tl.constexpr,
) -> None:
    """A block of one expert's results over `steps` chunks of columns: `result` [splits, tokens, rows]."""
    part = tl.program_id(2)
    expert, first, last = block_of(ends, tl.program_id(0), experts, TOKENS, EXPERTS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = first + tl.arange(0, TOKENS)
    start = expert.to(tl.int64) * tiles * chunks * (TILE * STEP)
    scale += expert.to(tl.int64) * groups * rows
    if minimum is not None:
        minimum += expert.to(tl.int64) * groups * rows
    begin, end = part * steps, tl.minimum((part + 1) * steps, chunks)
    end = tl.where(first < last, end, begin)  # a program that has no block does nothing
    if IS_FEW:
        start += tl.program_id(1).to(tl.int64) * chunks * (TILE * STEP)
        total = added_few(
            inputs, low, high, table, scale, minimum, sums, token, token < last, row, start, begin, end, rows, columns,
            stride, group, groups, LOW, HIGH, CENTER, TILE, STEP, FINE, TOKENS, LANES, HALF, EVEN,
        )  # fmt: skip
    else:
        total = added_many(
            inputs, low, high, table, scale, minimum, tl.minimum(token, last - 1), row, start, begin, end, rows,
            columns, stride, group, groups, chunks, LOW, HIGH, CENTER, TILE, STEP, FINE, EVEN, ROWS, TOKENS,
        )  # fmt: skip
    at_result = result + (part * tokens + token[None, :].to(tl.int64)) * rows + row[:, None]
    tl.store(at_result, total.to(result.dtype.element_ty), mask=(row[:, None] < rows) & (token[None, :] < last))


@triton.jit
def block_of(
    ends: tl.tensor, block: tl.tensor, experts: tl.tensor, TOKENS: tl.constexpr, EXPERTS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Whose block of tokens that is, its first token, and where those of the expert end; 0, 0, 0 if there is none."""
    number = tl.arange(0, EXPERTS)
    end = tl.load(ends + number, mask=number < experts, other=0)
    start = tl.load(ends + number - 1, mask=(number > 0) & (number < experts), other=0)
    blocks = (end - start + TOKENS - 1) // TOKENS
    after = tl.cumsum(blocks, 0)
    own = (after - blocks <= block) & (block < after)
    expert = tl.sum(tl.where(own, number, 0), 0)
    first = tl.sum(tl.where(own, start + (block - after + blocks) * TOKENS, 0), 0)
    return expert, first, tl.sum(tl.where(own, end, 0), 0)
