"""Ternary blocks, 256 weights: what bytes hold which codes (0, 1, 2 for −1, 0, 1). Widths are those of `planes`.

    TQ2_0    qs:64 (2 bits, width 32)   d:2
    TQ1_0    qs:32 qs:16 (five codes a byte)   qh:4 (four)   d:2

In TQ1_0 byte j of a part of `width` holds codes j, j + width, j + 2·width … as digits of base 3, the first of them the
leading one: n of 243, stored as ⌈n·256/243⌉, so that a product with a power of 3 brings a digit to the top of the byte.
Source: `ggml-quants.c` of ggml.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.formats.gguf.blocks.planes import Fields, apart, as_bytes, halves, stacked

_PARTS = ((32, 5), (16, 5), (4, 4))
_DIGITS = 5
_ALL = 3**_DIGITS
_STORED = torch.tensor([-(-whole * 256 // _ALL) for whole in range(_ALL)], dtype=torch.uint8)


def split_two(raw: Tensor) -> Fields:
    """The fields of TQ2_0 blocks [blocks, 66] uint8."""
    codes, d = raw.split([64, 2], 1)
    return {"codes": apart(codes, 2, 32), "scale": halves(d)}


def join_two(fields: Fields) -> Tensor:
    """The inverse of `split_two`."""
    return torch.cat([stacked(fields["codes"], 2, 32), as_bytes(fields["scale"])], 1)


def split_one(raw: Tensor) -> Fields:
    """The fields of TQ1_0 blocks [blocks, 54] uint8."""
    *parts, d = raw.split([*(width for width, _ in _PARTS), 2], 1)
    codes = [_digits(part, digits) for part, (_, digits) in zip(parts, _PARTS, strict=True)]
    return {"codes": torch.cat(codes, 1), "scale": halves(d)}


def join_one(fields: Fields) -> Tensor:
    """The inverse of `split_one`, of blocks that were joined here or by ggml."""
    parts = fields["codes"].split([width * digits for width, digits in _PARTS], 1)
    packed = [_bytes(part, *shape) for part, shape in zip(parts, _PARTS, strict=True)]
    return torch.cat([*packed, as_bytes(fields["scale"])], 1)


def _digits(raw: Tensor, digits: int) -> Tensor:
    """The codes [blocks, width·digits] of bytes [blocks, width]."""
    powers = torch.tensor([3**digit for digit in range(digits)], dtype=torch.uint8).view(1, -1, 1)
    turned = raw.unsqueeze(1) * powers  # modulo 256
    codes: Tensor = (turned.int() * 3 >> 8).to(torch.uint8)
    return codes.flatten(1)


def _bytes(codes: Tensor, width: int, digits: int) -> Tensor:
    """The inverse of `_digits`."""
    first, *others = codes.split(width, 1)
    whole = first.clone()
    for other in others:
        whole.mul_(3).add_(other)
    whole.mul_(3 ** (_DIGITS - digits))
    return _STORED.index_select(0, whole.int().flatten()).view_as(whole)
