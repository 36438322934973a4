"""XᵀX on tensor cores, half the triangle: what `kernels/measure/hessian.py` computes, block by block.

For 16-bit inputs, whose products are exact. Of fp32 inputs torch makes the same half triangle at 85 to 94 % of what an
H200 does in fp32; three products in TF32 instead took 1.6 times as long, and erred more where few tokens are summed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PART = 256
"""Tokens that tensor cores add up before their sum is rounded into the total: they truncate, sums of many drift."""


def takes(total: Tensor, inputs: Tensor) -> bool:
    """Whether the kernel can: tokens row by row, of 16 bits."""
    known = inputs.dtype in (torch.bfloat16, torch.float16)
    sums = total.dtype == torch.float32 and total.is_contiguous()
    return known and sums and inputs.stride(1) == 1 and inputs.numel() > 0


def add_hessian(total: Tensor, inputs: Tensor) -> None:
    """Add XᵀX to the upper triangle of `total` [columns, columns] fp32, X `inputs` [tokens, columns].

    Products of bf16 and fp16 are exact, sums are fp32.
    """
    tokens, columns = inputs.shape
    block = tile(columns)
    blocks = triton.cdiv(columns, block)
    grid = (blocks * (blocks + 1) // 2,)
    upper_products[grid](total, inputs, tokens, columns, inputs.stride(0), **specialised(block), **launched(block))


def tile(columns: int) -> int:
    """The side of a block: small where few blocks would leave a GPU idle, and where columns do not lie in 16 bytes."""
    return 128 if columns > 2048 and columns % 16 == 0 else 64


def specialised(block: int) -> dict[str, Any]:
    """The kernel's constants for blocks of that side."""
    return {"BLOCK": block, "DEPTH": 64, "PART": _PART}


def launched(block: int) -> dict[str, Any]:
    """How the kernel is compiled for blocks of that side."""
    return {"num_warps": 8 if block == 128 else 4, "num_stages": 3, "enable_fp_fusion": True}


@triton.jit
def upper_products(
    total: tl.tensor,
    inputs: tl.tensor,
    tokens: tl.tensor,
    columns: tl.tensor,
    stride: tl.tensor,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """One block of the upper triangle: rows `low`, columns `high` ≥ low. Program ids count blocks column by column."""
    program = tl.program_id(0)
    high = ((tl.sqrt(8.0 * program + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root may be off by one in the last place.
    high = tl.where(high * (high + 1) // 2 > program, high - 1, high)
    high = tl.where((high + 1) * (high + 2) // 2 <= program, high + 1, high)
    low = program - high * (high + 1) // 2
    rows = low * BLOCK + tl.arange(0, BLOCK)
    others = high * BLOCK + tl.arange(0, BLOCK)
    depth = tl.arange(0, DEPTH)
    sums = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for part in range(0, tokens, PART):
        partial = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for step in range(0, PART, DEPTH):
            token = part + step + depth
            start = token.to(tl.int64) * stride
            left = tl.load(
                inputs + start[None, :] + rows[:, None],
                mask=(token[None, :] < tokens) & (rows[:, None] < columns),
                other=0.0,
            )
            right = tl.load(
                inputs + start[:, None] + others[None, :],
                mask=(token[:, None] < tokens) & (others[None, :] < columns),
                other=0.0,
            )
            partial = tl.dot(left, right, partial)
        sums += partial
    place = total + rows[:, None].to(tl.int64) * columns + others[None, :]
    inside = (rows[:, None] < columns) & (others[None, :] < columns) & (rows[:, None] <= others[None, :])
    tl.store(place, tl.load(place, mask=inside, other=0.0) + sums, mask=inside)
