"""Small whole numbers beside each other in bytes, as all of GGML's blocks have them: plane upon plane.

Numbers of b bits come in rounds of 8/b planes of `width` each. Byte j of a round holds number j of its first plane in
its lowest b bits, number j of the second above those, and so on.
"""

from __future__ import annotations

import torch
from torch import Tensor

Fields = dict[str, Tensor]
"""What blocks consist of: codes and parameters by name, [blocks, n] each."""


def stacked(numbers: Tensor, bits: int, width: int) -> Tensor:
    """`numbers` [blocks, n] uint8, each below 2^bits, as bytes [blocks, n·bits/8] uint8."""
    planes = numbers.unflatten(1, (-1, 8 // bits, width))
    whole: Tensor = planes[:, :, 0].clone()
    for plane in range(1, 8 // bits):
        whole |= planes[:, :, plane] << (bits * plane)
    return whole.flatten(1)


def apart(raw: Tensor, bits: int, width: int) -> Tensor:
    """The numbers [blocks, n] uint8 of `raw` [blocks, n·bits/8] uint8; the inverse of `stacked`."""
    rounds = raw.unflatten(1, (-1, 1, width))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).view(1, 1, -1, 1)
    numbers: Tensor = (rounds >> shifts) & ((1 << bits) - 1)
    return numbers.flatten(1)


def halves(raw: Tensor) -> Tensor:
    """Bytes [blocks, 2·n] uint8 as [blocks, n] float16."""
    return raw.contiguous().view(torch.float16)


def as_bytes(values: Tensor) -> Tensor:
    """float16 [blocks, n] as [blocks, 2·n] uint8."""
    return values.contiguous().view(torch.uint8)
