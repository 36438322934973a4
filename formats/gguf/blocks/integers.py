"""The integer blocks of GGML: 32 weights, one float16 scale d, for some kinds a float16 minimum m.

    block   zero     bytes                                    value
    Q4_0    middle   d:2            qs:16                     d·(q − 8)
    Q4_1    real     d:2  m:2       qs:16                     d·q + m
    Q5_0    middle   d:2       qh:4 qs:16                     d·(q − 16)
    Q5_1    real     d:2  m:2  qh:4 qs:16                     d·q + m
    Q8_0    middle   d:2                    q:32 (int8)       d·q

Byte j of qs holds the low four bits of code j in its low half and of code j + 16 in its high half. Bit i of
qh (little-endian) is the fifth bit of code i. Source: `ggml-common.h` and `ggml-quants.c` of ggml.

Every function works on flat blocks: codes [blocks, 32] uint8 0 … 2^bits − 1, scale and minimum [blocks] fp16.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress.kernels.search.integers import Zero

GROUP = 32


class Blocks(NamedTuple):
    """Unpacked blocks: codes [blocks, 32] uint8, scale [blocks] fp16, minimum likewise (real zeros only)."""

    codes: Tensor
    scale: Tensor
    minimum: Tensor | None


def block_bytes(bits: int, zero: Zero) -> int:
    """Bytes of one block."""
    return 2 + (2 if zero == "real" else 0) + GROUP * bits // 8


def join(blocks: Blocks, bits: int) -> Tensor:
    """The bytes of blocks: [blocks, bytes] uint8."""
    fields = [blocks.scale.view(-1, 1).view(torch.uint8)]
    if blocks.minimum is not None:
        fields.append(blocks.minimum.view(-1, 1).view(torch.uint8))
    codes = blocks.codes
    if bits == 8:
        return torch.cat([*fields, codes ^ 0x80], 1)
    if bits == 5:
        fields.append(torch.from_numpy(np.packbits((codes >> 4).numpy(), axis=1, bitorder="little")))
    low, high = torch.split(codes & 0x0F, GROUP // 2, 1)
    return torch.cat([*fields, low | (high << 4)], 1)


def split(raw: Tensor, bits: int, zero: Zero) -> Blocks:
    """The fields of `raw` [blocks, bytes] uint8; the inverse of `join`."""
    halves = 2 if zero == "real" else 1
    floats = raw[:, : 2 * halves].contiguous().view(torch.float16)
    minimum = floats[:, 1].contiguous() if zero == "real" else None
    packed = raw[:, 2 * halves :]
    if bits == 8:
        codes = packed ^ 0x80
    else:
        nibbles = packed[:, -GROUP // 2 :]
        codes = torch.cat([nibbles & 0x0F, nibbles >> 4], 1)
    if bits == 5:
        fifth = np.unpackbits(packed[:, : GROUP // 8].numpy(), axis=1, bitorder="little")
        codes |= torch.from_numpy(fifth) << 4
    return Blocks(codes, floats[:, 0].contiguous(), minimum)


def fit(weight: Tensor, bits: int, zero: Zero) -> Blocks:
    """GGML's own round-to-nearest of `weight` [blocks, 32] fp32 (`quantize_row_q*_ref` in ggml-quants.c).

    Bit-exact with it wherever that is defined. It is not where all of a block is so small that float32 cannot
    hold 1/d, and C converts an infinity to an integer: here such weights become 0. Their scale is 0 anyway.
    """
    if bits == 8:
        return _fit_absmax(weight)
    if zero == "real":
        return _fit_range(weight, bits)
    return _fit_signed_max(weight, bits)


def _fit_absmax(weight: Tensor) -> Blocks:
    """Q8_0: d = max|w|/127, codes rounded half away from zero."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    scaled = weight * _reciprocal(scale)
    size = scaled.abs()
    whole = size.floor()
    # Not floor(|x| + ½): that sum rounds up to 1 for the float just below ½.
    whole += size.sub_(whole) >= 0.5
    return Blocks(whole.copysign_(scaled).add_(128).byte(), scale.view(-1).half(), None)


def _fit_signed_max(weight: Tensor, bits: int) -> Blocks:
    """Q4_0, Q5_0: the weight that is largest in magnitude becomes the lowest code, sign and all."""
    middle = 1 << (bits - 1)
    scale = _signed_max(weight) / -middle
    scaled = weight * _reciprocal(scale)
    codes = scaled.add_(middle + 0.5).clamp_(max=2 * middle - 1).byte()
    return Blocks(codes, scale.view(-1).half(), None)


def _fit_range(weight: Tensor, bits: int) -> Blocks:
    """Q4_1, Q5_1: codes spread from the lowest weight to the highest."""
    levels = (1 << bits) - 1
    minimum = weight.amin(1, keepdim=True)
    scale = (weight.amax(1, keepdim=True) - minimum) / levels
    scaled = (weight - minimum).mul_(_reciprocal(scale))
    codes = scaled.add_(0.5).clamp_(max=levels).byte()
    return Blocks(codes, scale.view(-1).half(), minimum.view(-1).half())


def _signed_max(weight: Tensor) -> Tensor:
    """The first weight of largest magnitude in every block: [blocks, 1]."""
    highest, lowest = weight.amax(1, keepdim=True), weight.amin(1, keepdim=True)
    largest = torch.where(highest > -lowest, highest, lowest)
    # argmax alone would do, but is ten times slower: it is left to the blocks where ±x tie.
    tied = (highest == -lowest).view(-1)
    rows = weight[tied]
    largest[tied] = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return largest


def _reciprocal(scale: Tensor) -> Tensor:
    """1/scale; 0 where that is infinite."""
    reciprocal = 1 / scale
    return reciprocal.masked_fill_(reciprocal.isinf(), 0)
