"""Double quantization (QLoRA, arXiv 2305.14314, section 3): the scales of blocks, themselves in 8 bits.

Their mean is subtracted, and every 256 differences share a scale and take the codes of an 8-bit dynamic type
(Dettmers, arXiv 2110.02861, section 1.3). Codes are those of bitsandbytes 0.50 on a CPU: it looks the
nearest value up in a table of 65,536 steps of −1 … 1 (csrc/cpu_ops.cpp).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

NESTED_BLOCK = 256
_EXPONENTS = 7
_STEPS = 1 << 16


@cache
def dynamic_map(device: torch.device) -> Tensor:
    """The 256 values [256] fp32, rising: of ten to the power −6 … 0, one, two, four … 64 parts; 0; and 1."""
    values = [0.0, 1.0]
    for exponent in range(_EXPONENTS):
        edges = torch.linspace(0.1, 1, (1 << exponent) + 1)
        parts = (10.0 ** (exponent + 1 - _EXPONENTS)) * ((edges[:-1] + edges[1:]) / 2)
        values += [*parts.tolist(), *(-parts).tolist()]
    return torch.tensor(sorted(values), device=device)


@cache
def _nearest(device: torch.device) -> Tensor:
    """The code [65536] uint8 of every step."""
    steps = (2.0 * torch.arange(_STEPS, dtype=torch.float32)) / (_STEPS - 1) - 1.0
    values = dynamic_map(torch.device("cpu"))
    return torch.bucketize(steps, (values[:-1] + values[1:]) * 0.5).byte().to(device)


def nest(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`scales` [n] fp32 → codes [n] uint8, nested scales [⌈n/256⌉] fp32 and offset [1] fp32."""
    offset = scales.mean()
    blocks = pad(scales - offset, (0, -len(scales) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    largest = blocks.abs().amax(1)
    scaled = (blocks * largest.reciprocal().unsqueeze(1)).nan_to_num(0.0).clamp_(-1, 1)
    steps = ((scaled + 1.0) * 0.5 * (_STEPS - 1) + 0.5).int()
    codes = _nearest(scales.device)[steps].masked_fill_((largest == 0).unsqueeze(1), 0)
    return codes.flatten()[: len(scales)], largest, offset.view(1)


def renest(moved: Tensor, codes: Tensor, nested: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and nested scales for scales `moved` [n] fp32, NaN where one stays as it is; the offset stays.

    A nested scale grows where its block outgrows it, and then all of its block gets new codes.
    """
    stays = moved.isnan()
    wanted = torch.where(stays, unnest(codes, nested, offset), moved) - offset
    blocks = pad(wanted.masked_fill(stays, 0.0), (0, -len(codes) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    grown = torch.maximum(nested, blocks.abs().amax(1))
    repeated = (grown != nested).repeat_interleave(NESTED_BLOCK)[: len(codes)]
    values = dynamic_map(codes.device)
    scaled = wanted / grown.repeat_interleave(NESTED_BLOCK)[: len(codes)].clamp(min=torch.finfo(torch.float32).tiny)
    nearest = torch.bucketize(scaled, (values[:-1] + values[1:]) * 0.5).byte()
    return torch.where(stays & ~repeated, codes, nearest), grown


def unnest(codes: Tensor, nested: Tensor, offset: Tensor) -> Tensor:
    """The scales [n] fp32, each rounded as bitsandbytes rounds it: first the product, then the sum."""
    values = dynamic_map(codes.device)[codes.int()]
    return values * nested.repeat_interleave(NESTED_BLOCK)[: len(codes)] + offset
