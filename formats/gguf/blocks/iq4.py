"""IQ4_XS, 256 weights a block: what bytes hold which codes and scales. Widths are those of `planes`.

    d:2   s:2 (upper 2 bits of s + 32, width 1)   s:4 (lower 4 bits, width 1)   qs:128 (4 bits, width 16)

Source: `ggml-common.h` and `ggml-quants.c` of ggml.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.gguf.blocks.planes import Fields, apart, as_bytes, halves, stacked


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
