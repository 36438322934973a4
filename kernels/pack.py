"""Codes of 2, 3, 4 or 8 bits in 32-bit words, as GPTQ files hold them.

Along the first dimension the codes form one stream of bits, lowest bit first: code k occupies the bits
b·k … b·k + b − 1. With 3 bits, codes 10 and 21 of every 32 straddle two of their three words. This is the
layout of AutoGPTQ's `QuantLinear.pack`, which every engine that loads GPTQ files has taken over.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 32


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes [n, m] uint8, each below 2^bits → words [n·bits/32, m] int32. n is a multiple of 32."""
    lanes = codes.contiguous().view(-1, _WORD, codes.shape[1])
    words = torch.zeros(lanes.shape[0], bits, lanes.shape[2], dtype=torch.int32, device=codes.device)
    for lane in range(_WORD):
        word, shift = divmod(lane * bits, _WORD)
        code = lanes[:, lane].int()
        words[:, word] |= code << shift
        if shift + bits > _WORD:
            words[:, word + 1] |= code >> (_WORD - shift)
    return words.reshape(-1, codes.shape[1])


def unpack(words: Tensor, bits: int) -> Tensor:
    """words [n·bits/32, m] int32 → codes [n, m] uint8."""
    grouped = words.contiguous().view(-1, bits, words.shape[1])
    codes = torch.empty(grouped.shape[0], _WORD, words.shape[1], dtype=torch.uint8, device=words.device)
    mask = (1 << bits) - 1
    for lane in range(_WORD):
        word, shift = divmod(lane * bits, _WORD)
        # The shift keeps the sign; what it drags in lies above the mask, or is overwritten by the next word.
        code = grouped[:, word] >> shift & mask
        if shift + bits > _WORD:
            low = _WORD - shift
            code = code & (1 << low) - 1 | grouped[:, word + 1] << low & mask
        codes[:, lane] = code.byte()
    return codes.reshape(-1, words.shape[1])
