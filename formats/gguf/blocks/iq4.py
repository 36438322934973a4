"""Four-bit tables: what bytes hold which codes and scales. Widths are those of `planes`.

    IQ4_NL    32 weights     d:2   qs:16 (4 bits, width 16)
    IQ4_XS    256 weights    d:2   s:2 (upper 2 bits of s + 32, width 1)   s:4 (lower 4 bits, width 1)   qs:128
    MXFP4     32 weights     e:1   qs:16

Source: `ggml-common.h` and `ggml-quants.c` of ggml.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.errors import InputError
from compress.formats.gguf.blocks.planes import Fields, apart, as_bytes, halves, stacked
from compress.kernels.numbers.float4 import TOP_EXPONENT


def split_nl(raw: Tensor) -> Fields:
    """The fields of IQ4_NL blocks [blocks, 18] uint8."""
    d, codes = raw.split([2, 16], 1)
    return {"codes": apart(codes, 4, 16), "scale": halves(d)}


def join_nl(fields: Fields) -> Tensor:
    """The inverse of `split_nl`."""
    return torch.cat([as_bytes(fields["scale"]), stacked(fields["codes"], 4, 16)], 1)


def split_xs(raw: Tensor) -> Fields:
    """The fields of IQ4_XS blocks [blocks, 136] uint8."""
    d, upper, lower, codes = raw.split([2, 2, 4, 128], 1)
    scale = apart(lower, 4, 1) | (apart(upper, 2, 1) << 4)
    return {"codes": apart(codes, 4, 16), "scale": (scale - 32).view(torch.int8), "d": halves(d)}


def join_xs(fields: Fields) -> Tensor:
    """The inverse of `split_xs`."""
    scale = fields["scale"].view(torch.uint8) + 32
    upper, lower = stacked(scale >> 4, 2, 1), stacked(scale & 0x0F, 4, 1)
    return torch.cat([as_bytes(fields["d"]), upper, lower, stacked(fields["codes"], 4, 16)], 1)


def split_mx(raw: Tensor) -> Fields:
    """The fields of MXFP4 blocks [blocks, 17] uint8.

    Raises InputError for a scale whose 6 is no float32, unless all it scales are zeros: those get another.
    """
    scale, packed = raw.split([1, 16], 1)
    codes = apart(packed, 4, 16)
    above = scale > TOP_EXPONENT
    if bool((above & (codes & 0x07).any(1, keepdim=True)).any()):
        raise InputError(f"mxfp4 blocks hold the exponent {int(scale.max())}, which float32 does not", "damaged file?")
    return {"codes": codes, "scale": scale.masked_fill(above, TOP_EXPONENT)}


def join_mx(fields: Fields) -> Tensor:
    """The inverse of `split_mx`."""
    return torch.cat([fields["scale"], stacked(fields["codes"], 4, 16)], 1)
