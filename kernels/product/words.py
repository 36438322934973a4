"""Codes of 2 to 8 bits in words, as a GPU reads them: each load is one piece, and lanes fall out by shifts alone.

Rows stand in tiles of 64, columns in chunks of 256, both filled up with code 0. A word holds the same row's codes of
columns 32 apart: bits w·i … w·i + w − 1 of word j of a chunk are those of its column 32·i + j. So the i-th lanes of 32
words are 32 neighbouring columns, which share a scale and which tensor cores take in two steps. w is 1, 2 or 4, words
have 8·w bits, and codes of other widths lie in two planes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.kernels.product.levels import Levels, levels_of
from compress.kernels.qtensor import QTensor

TILE, CHUNK, STEP = 64, 256, 32
_LEAST_GROUP = 16
_LANES = CHUNK // STEP
_PLANES = {1: (2, 0), 2: (2, 0), 3: (2, 1), 4: (4, 0), 5: (4, 1), 6: (4, 2), 7: (4, 4), 8: (4, 4)}
_WORD = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Words:
    """A weight [rows, columns] = `shape`, `group` columns of a row to a scale.

    `low` and `high` [tiles, chunks, 64, 32] hold bits of a code each; `high` is None where one plane does.
    ŵ = scale · (level − `center`) + minimum, levels those of `table` [levels] fp32 or, if that is None, the codes.
    `scale` fp16 or fp32, `minimum` fp32 or None where it is 0: [groups, rows].
    """

    shape: tuple[int, int]
    group: int
    low: Tensor
    high: Tensor | None
    table: Tensor | None
    center: int
    scale: Tensor
    minimum: Tensor | None

    @property
    def widths(self) -> tuple[int, int]:
        """Bits of a code in each plane: eight codes are a word."""
        return self.low.itemsize, 0 if self.high is None else self.high.itemsize

    @property
    def fine(self) -> bool:
        """Whether 32 neighbouring columns may have two scales."""
        return self.group % STEP != 0

    def values(self) -> Tensor:
        """The weight, fp32."""
        rows, columns = self.shape
        low, high = self.widths
        codes = _unpacked(self.low, low)
        if self.high is not None:
            codes |= _unpacked(self.high, high) << low
        codes = codes[:rows, :columns].reshape(rows, -1, self.group)
        levels = (codes - self.center).float() if self.table is None else self.table[codes.int()]
        values = levels * self.scale.T.float().unsqueeze(2)
        if self.minimum is not None:
            values += self.minimum.T.unsqueeze(2)
        return values.reshape(rows, columns)


def words_of(weight: QTensor) -> Words | None:
    """`weight` in words; None if its groups are not of 16, 32, 64 or 128 columns, of multiples of 256, or of all."""
    levels = levels_of(weight)
    if levels is None:
        return None
    rows, columns = weight.shape
    group = columns // levels.scale.shape[1]
    if group % _LEAST_GROUP or (CHUNK % group and group % CHUNK and group != columns):
        return None
    low, high = _PLANES[(weight.format.levels - 1).bit_length()]
    codes = _filled(weight.codes)
    center, minimum = _centred(levels)
    return Words(
        (rows, columns),
        group,
        _packed(codes & (1 << low) - 1, low),
        _packed(codes >> low, high) if high else None,
        None if levels.even else levels.table,
        center,
        _halved(levels.scale.T.contiguous()),
        minimum.T.contiguous() if bool(minimum.any()) else None,
    )


def _centred(levels: Levels) -> tuple[int, Tensor]:
    """A whole number taken from codes, and the minimum that is left: none for symmetric grids."""
    center = len(levels.table) // 2 if levels.even else 0
    return center, levels.minimum + center * levels.scale


def _halved(scale: Tensor) -> Tensor:
    """In half the bytes, if that says the same."""
    half = scale.half()
    return half if torch.equal(half.float(), scale) else scale


def _filled(codes: Tensor) -> Tensor:
    rows, columns = codes.shape
    return torch.nn.functional.pad(codes, (0, -columns % CHUNK, 0, -rows % TILE))


def _packed(codes: Tensor, width: int) -> Tensor:
    """codes [64 · tiles, 256 · chunks] below 2^width → words [tiles, chunks, 64, 32]."""
    tiles, chunks = len(codes) // TILE, codes.shape[1] // CHUNK
    lanes = codes.view(tiles, TILE, chunks, _LANES, STEP).permute(3, 0, 2, 1, 4)
    words = torch.zeros(lanes.shape[1:], dtype=torch.int32, device=codes.device)
    for lane, part in enumerate(lanes):
        words |= part.int() << width * lane
    # Narrow words keep the low bits; int32 is the width of four.
    return words.to(_WORD[width])


def _unpacked(words: Tensor, width: int) -> Tensor:
    """words [tiles, chunks, 64, 32] → codes [64 · tiles, 256 · chunks] int16."""
    tiles, chunks = words.shape[:2]
    codes = torch.empty(tiles, TILE, chunks, _LANES, STEP, dtype=torch.int16, device=words.device)
    for lane in range(_LANES):
        codes[:, :, :, lane] = (words >> width * lane & (1 << width) - 1).transpose(1, 2)
    return codes.view(tiles * TILE, chunks * CHUNK)
