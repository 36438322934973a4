"""K-quants, 256 weights a block: what bytes hold which codes and scales. Widths are those of `planes`.

    Q2_K    s, m:16 (four bits each)   qs:64 (2 bits, width 32)   d:2   dmin:2
    Q3_K    qh:32 (1 bit, width 32)    qs:64 (2 bits, width 32)   s:12  d:2
    Q4_K    d:2   dmin:2   s, m:12     qs:128 (4 bits, width 32)
    Q5_K    d:2   dmin:2   s, m:12     qh:32 (1 bit, width 32)    qs:128 (4 bits, width 32)
    Q6_K    qs:128 (4 bits, width 64)  qh:64 (2 bits, width 32)   s:16  d:2

qs are the lower bits of codes, qh the upper. Whole scales of Q3_K are s + 32 in six bits: the lower four at width 8,
then the upper two at width 4. Of Q4_K and Q5_K, the first four s, then the first four m have six bits of a byte each,
whose upper two belong to the other four; the lower four bits of those follow at width 4, s before m.
Source: `ggml-common.h` and `ggml-quants.c` of ggml.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.gguf.blocks.planes import Fields, apart, as_bytes, halves, stacked


def split_q2(raw: Tensor) -> Fields:
    """The fields of Q2_K blocks [blocks, 84] uint8."""
    pairs, codes, floats = raw.split([16, 64, 4], 1)
    return {"codes": apart(codes, 2, 32), "scale": pairs & 0x0F, "minimum": pairs >> 4, **_floats(floats)}


def join_q2(fields: Fields) -> Tensor:
    """The inverse of `split_q2`."""
    pairs = fields["scale"] | (fields["minimum"] << 4)
    return torch.cat([pairs, stacked(fields["codes"], 2, 32), _float_bytes(fields)], 1)


def split_q4(raw: Tensor) -> Fields:
    """The fields of Q4_K blocks [blocks, 144] uint8."""
    floats, pairs, codes = raw.split([4, 12, 128], 1)
    return {"codes": apart(codes, 4, 32), **_floats(floats), **_pairs(pairs)}


def join_q4(fields: Fields) -> Tensor:
    """The inverse of `split_q4`."""
    return torch.cat([_float_bytes(fields), _pair_bytes(fields), stacked(fields["codes"], 4, 32)], 1)


def split_q5(raw: Tensor) -> Fields:
    """The fields of Q5_K blocks [blocks, 176] uint8."""
    floats, pairs, fifth, lower = raw.split([4, 12, 32, 128], 1)
    codes = apart(lower, 4, 32) | (apart(fifth, 1, 32) << 4)
    return {"codes": codes, **_floats(floats), **_pairs(pairs)}


def join_q5(fields: Fields) -> Tensor:
    """The inverse of `split_q5`."""
    codes = fields["codes"]
    upper, lower = stacked(codes >> 4, 1, 32), stacked(codes & 0x0F, 4, 32)
    return torch.cat([_float_bytes(fields), _pair_bytes(fields), upper, lower], 1)


def split_q3(raw: Tensor) -> Fields:
    """The fields of Q3_K blocks [blocks, 110] uint8."""
    third, lower, low, high, d = raw.split([32, 64, 8, 4, 2], 1)
    scale = apart(low, 4, 8) | (apart(high, 2, 4) << 4)
    codes = apart(lower, 2, 32) | (apart(third, 1, 32) << 2)
    return {"codes": codes, "scale": (scale - 32).view(torch.int8), "d": halves(d)}


def join_q3(fields: Fields) -> Tensor:
    """The inverse of `split_q3`."""
    codes, scale = fields["codes"], fields["scale"].view(torch.uint8) + 32
    low, high = stacked(scale & 0x0F, 4, 8), stacked(scale >> 4, 2, 4)
    upper, lower = stacked(codes >> 2, 1, 32), stacked(codes & 0x03, 2, 32)
    return torch.cat([upper, lower, low, high, as_bytes(fields["d"])], 1)


def split_q6(raw: Tensor) -> Fields:
    """The fields of Q6_K blocks [blocks, 210] uint8."""
    lower, upper, scale, d = raw.split([128, 64, 16, 2], 1)
    codes = apart(lower, 4, 64) | (apart(upper, 2, 32) << 4)
    return {"codes": codes, "scale": scale.contiguous().view(torch.int8), "d": halves(d)}


def join_q6(fields: Fields) -> Tensor:
    """The inverse of `split_q6`."""
    codes, scale = fields["codes"], fields["scale"].view(torch.uint8)
    lower, upper = stacked(codes & 0x0F, 4, 64), stacked(codes >> 4, 2, 32)
    return torch.cat([lower, upper, scale, as_bytes(fields["d"])], 1)


def _floats(raw: Tensor) -> Fields:
    """d and dmin of four bytes a block."""
    values = halves(raw)
    return {"d": values[:, :1], "dmin": values[:, 1:]}


def _float_bytes(fields: Fields) -> Tensor:
    return torch.cat([as_bytes(fields["d"]), as_bytes(fields["dmin"])], 1)


def _pairs(raw: Tensor) -> Fields:
    """Eight s and eight m of twelve bytes a block."""
    first, lower = raw[:, :8], apart(raw[:, 8:], 4, 4)
    others = lower | ((first >> 6) << 4)
    scale, minimum = (torch.cat([first[:, at : at + 4] & 0x3F, others[:, at : at + 4]], 1) for at in (0, 4))
    return {"scale": scale, "minimum": minimum}


def _pair_bytes(fields: Fields) -> Tensor:
    first, others = (
        torch.cat([fields["scale"][:, part], fields["minimum"][:, part]], 1) for part in (slice(4), slice(4, 8))
    )
    return torch.cat([first | ((others >> 4) << 6), stacked(others & 0x0F, 4, 4)], 1)
