"""Flash decoding over codes: `kernels/product/attend_codes.py`. Codes become numbers in registers, never in memory.

Tokens are split over programs (Dao et al., "Flash-Decoding for long-context inference", 2023), each of which reads one
head of keys and values for all the heads of the query that share it; the parts are joined in order. Tokens are the rows
that tensor cores take from registers, heads of the query their columns, of which 16 are the least.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.kernels.numbers.activations import Grid
from compress.kernels.product.attend_codes import Coded

_TOKENS = 64
_PROGRAMS = 264
"""Two for each processor of an H100."""
_LEAST_BLOCKS = 2
_WIDEST = 256


def takes(query: Tensor, keys: Coded, values: Coded, scaling: float, mask: Tensor | None = None) -> bool:
    """Whether the kernel can: a query of 16 bits, at most 16 heads of it to one of codes, whose widths are the same."""
    known = query.dtype in (torch.bfloat16, torch.float16) and keys.codes.shape == values.codes.shape
    whole = keys.codes.stride(3) == values.codes.stride(3) == query.stride(2) == 1
    plain = mask is None or (mask.dtype == torch.bool and mask.shape == keys.scale.shape[::2])
    alike = keys.grid == values.grid and query.shape[1] <= 16 * keys.codes.shape[1]
    return known and whole and plain and alike and query.shape[2] <= _WIDEST


def attend_codes(query: Tensor, keys: Coded, values: Coded, scaling: float, mask: Tensor | None = None) -> Tensor:
    """See the reference."""
    batch, heads, width = query.shape
    kept, tokens = keys.codes.shape[1:3]
    blocks = triton.cdiv(tokens, _TOKENS)
    splits = max(1, min(_PROGRAMS // (batch * kept), blocks // _LEAST_BLOCKS))
    sums = torch.empty(splits, batch, heads, width, dtype=torch.float32, device=query.device)
    tops = torch.empty(2, splits, batch, heads, dtype=torch.float32, device=query.device)
    result = torch.empty_like(query, memory_format=torch.contiguous_format)
    attended[(batch * kept, splits)](
        *(query, *keys[:2], *values[:2], mask, sums, tops, scaling * 1.4426950408889634),
        *(kept, heads // kept, tokens, width, triton.cdiv(blocks, splits)),
        *query.stride()[:2],
        *(stride for coded in (keys, values) for stride in (*coded.codes.stride()[:3], *coded.scale.stride())),
        *(mask.stride() if mask is not None else (0, 0)),
        **specialised(width, keys.grid),
        **launched(),
    )
    joined[(batch * heads,)](
        *(sums, tops, result, batch * heads, width),
        SPLITS=splits,
        WIDTH=triton.next_power_of_2(width),
        enable_fp_fusion=True,
    )
    return result


def specialised(width: int, grid: Grid) -> dict[str, Any]:
    """The kernel's constants."""
    return {"TOKENS": _TOKENS, "HEADS": 16, "WIDTH": max(16, triton.next_power_of_2(width)), "FP8": grid == "fp8"}


def launched() -> dict[str, Any]:
    """How the kernel is compiled."""
    return {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}


@triton.jit
def attended(
    query: tl.tensor,
    keys: tl.tensor,
    key_scale: tl.tensor,
    values: tl.tensor,
    value_scale: tl.tensor,
    mask: tl.tensor,
    sums: tl.tensor,
    tops: tl.tensor,
    scaling: tl.tensor,
    kept: tl.tensor,
    shared: tl.tensor,
    tokens: tl.tensor,
    width: tl.tensor,
    steps: tl.tensor,
    q_batch: tl.tensor,
    q_head: tl.tensor,
    k_batch: tl.tensor,
    k_head: tl.tensor,
    k_token: tl.tensor,
    ks_batch: tl.tensor,
    ks_head: tl.tensor,
    ks_token: tl.tensor,
    v_batch: tl.tensor,
    v_head: tl.tensor,
    v_token: tl.tensor,
    vs_batch: tl.tensor,
    vs_head: tl.tensor,
    vs_token: tl.tensor,
    m_batch: tl.tensor,
    m_token: tl.tensor,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    FP8: tl.constexpr,
) -> None:
    """`steps` blocks of tokens for the `shared` heads of one key/value head; exponents are of 2.

    `sums` [splits, batch · heads, width]: Σ 2^(s − top)·v. `tops` [2, splits, batch · heads]: top, and Σ 2^(s − top).
    """
    batch, head, part = tl.program_id(0) // kept, tl.program_id(0) % kept, tl.program_id(1)
    mine, place, along = tl.arange(0, HEADS), tl.arange(0, WIDTH), tl.arange(0, TOKENS)
    heads = head * shared + mine
    q_at = query + batch.to(tl.int64) * q_batch + heads[None, :] * q_head + place[:, None]
    q = tl.load(q_at, mask=(mine < shared)[None, :] & (place < width)[:, None], other=0.0)
    k_at = keys + batch.to(tl.int64) * k_batch + head.to(tl.int64) * k_head
    v_at = values + batch.to(tl.int64) * v_batch + head.to(tl.int64) * v_head
    ks_at = key_scale + batch.to(tl.int64) * ks_batch + head.to(tl.int64) * ks_head
    vs_at = value_scale + batch.to(tl.int64) * vs_batch + head.to(tl.int64) * vs_head
    top = tl.full((HEADS,), -1e30, tl.float32)  # finite: two of them have a difference
    whole = tl.zeros((HEADS,), tl.float32)
    total = tl.zeros((WIDTH, HEADS), tl.float32)
    for start in range(part * steps * TOKENS, tl.minimum((part + 1) * steps * TOKENS, tokens), TOKENS):
        token = start + along
        seen = token < tokens
        inside = seen[:, None] & (place < width)[None, :]
        k = tl.load(k_at + token[:, None].to(tl.int64) * k_token + place[None, :], mask=inside, other=0)
        s = tl.dot(number_of(k, FP8).to(q.dtype), q)
        s *= tl.load(ks_at + token.to(tl.int64) * ks_token, mask=seen, other=0.0)[:, None] * scaling
        if mask is not None:
            seen = seen & (tl.load(mask + batch * m_batch + token * m_token, mask=seen, other=0) != 0)
        s = tl.where(seen[:, None], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 0))
        p = tl.exp2(s - higher[None, :])
        fade = tl.exp2(top - higher)
        whole = whole * fade + tl.sum(p, 0)
        v = tl.load(v_at + token[None, :].to(tl.int64) * v_token + place[:, None], mask=tl.trans(inside), other=0)
        v_scale = tl.load(vs_at + token.to(tl.int64) * vs_token, mask=token < tokens, other=0.0)
        v = (number_of(v, FP8) * v_scale[None, :]).to(q.dtype)
        total = tl.dot(v, p.to(q.dtype), total * fade[None, :])
        top = higher
    row = batch * kept * shared + heads
    rows = tl.num_programs(0) * shared
    here = mine < shared
    sums_at = sums + (part * rows + row)[None, :].to(tl.int64) * width + place[:, None]
    tl.store(sums_at, total, mask=here[None, :] & (place < width)[:, None])
    tl.store(tops + part * rows + row, top, mask=here)
    tl.store(tops + (tl.num_programs(1) + part) * rows + row, whole, mask=here)


@triton.jit
def number_of(code: tl.tensor, FP8: tl.constexpr) -> tl.tensor:
    """What bytes stand for, fp32, exactly, without a conversion of integers.

    E4M3 has its bits where fp16 has them, its exponent 8 less; 2²³ + q has the bits 0x4B000000 | q.
    """
    bits = code.to(tl.int32)
    if FP8:
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        return half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return ((bits ^ 0x80) | 0x4B000000).to(tl.float32, bitcast=True) - 8388736.0


@triton.jit
def joined(
    sums: tl.tensor,
    tops: tl.tensor,
    result: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Parts of one row, each as high as it was, added up and divided: `result` [rows, width]."""
    row, place = tl.program_id(0), tl.arange(0, WIDTH)
    top = tl.load(tops + row)
    for part in range(1, SPLITS):
        top = tl.maximum(top, tl.load(tops + part * rows + row))
    total = tl.zeros((WIDTH,), tl.float32)
    whole = 0.0
    for part in range(SPLITS):
        fade = tl.exp2(tl.load(tops + part * rows + row) - top)
        whole += fade * tl.load(tops + (SPLITS + part) * rows + row)
        total += fade * tl.load(sums + (part * rows + row).to(tl.int64) * width + place, mask=place < width, other=0.0)
    tl.store(result + row * width + place, (total / whole).to(result.dtype.element_ty), mask=place < width)
