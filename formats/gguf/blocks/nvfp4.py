"""NVFP4: what bytes hold which codes and scales. The scale of the whole tensor lies in a tensor beside.

    NVFP4     64 weights     s:4 (E4M3 without a sign, of 16 weights each)   qs:32 (4 bits, width 8)

Source: `ggml-common.h` and `ggml-quants.c` of ggml; widths are those of `planes`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.errors import InputError
from compress.formats.gguf.blocks.planes import Fields, apart, stacked

_SIGN, _NAN = 0x80, 0x7F


def split(raw: Tensor) -> Fields:
    """The fields of NVFP4 blocks [blocks, 36] uint8.

    What is scaled by 0, or by the pattern that would be no number, is 0 in ggml: codes of 0 under another scale here.
    Raises InputError for scales with a sign.
    """
    scale, packed = raw.split([4, 32], 1)
    if int(scale.max()) >= _SIGN:
        raise InputError(f"nvfp4 blocks hold the scale {int(scale.max()):#x}, and have no signs", "damaged file?")
    zeros = (scale == 0) | (scale == _NAN)
    codes = apart(packed, 4, 8).unflatten(1, (4, 16)).masked_fill(zeros.unsqueeze(2), 0)
    return {"codes": codes.flatten(1), "scale": scale.masked_fill(zeros, 1)}


def join(fields: Fields) -> Tensor:
    """The inverse of `split`."""
    return torch.cat([fields["scale"], stacked(fields["codes"], 4, 8)], 1)
