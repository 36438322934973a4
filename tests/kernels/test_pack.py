"""Packing, against a bit-by-bit definition of the layout; AutoGPTQ's own bytes are in test_gptq_dialect.py."""

import pytest
import torch

from compress.kernels.pack import pack, unpack


def bit_by_bit(codes, bits):
    """The layout in plain Python: the column's codes as one long number, cut into words."""
    words = []
    for column in zip(*codes.tolist()):
        number = sum(code << (bits * index) for index, code in enumerate(column))
        words.append([number >> (32 * word) & 0xFFFFFFFF for word in range(len(column) * bits // 32)])
    return [list(row) for row in zip(*words)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(32, 1), (64, 5), (96, 32)])
def test_words_equal_the_definition_and_come_back(bits, shape):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, shape, generator=generator, dtype=torch.uint8)
    words = pack(codes, bits)
    assert words.dtype == torch.int32 and words.shape == (shape[0] * bits // 32, shape[1])
    assert [[word & 0xFFFFFFFF for word in row] for row in words.tolist()] == bit_by_bit(codes, bits)
    assert torch.equal(unpack(words, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_all_ones_fill_every_bit(bits):
    codes = torch.full((32, 3), (1 << bits) - 1, dtype=torch.uint8)
    assert torch.equal(pack(codes, bits), torch.full((bits, 3), -1, dtype=torch.int32))
    assert torch.equal(unpack(pack(codes, bits), bits), codes)


def test_three_bit_codes_straddle_words():
    codes = torch.zeros(32, 1, dtype=torch.uint8)
    codes[10], codes[21] = 0b101, 0b110
    assert [word & 0xFFFFFFFF for word in pack(codes, 3).flatten().tolist()] == [0b01 << 30, 1, 0b11]


def test_views_are_packed_as_they_read():
    codes = torch.arange(12 * 32, dtype=torch.int64).remainder(16).byte().view(12, 32)
    assert torch.equal(pack(codes.T, 4), pack(codes.T.contiguous(), 4))
