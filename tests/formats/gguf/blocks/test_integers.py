"""Blocks of 32 integers: their bytes, and GGML's own rounding."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from compress.formats.gguf.blocks.integers import Blocks, fit, join, split

KINDS = {"Q4_0": (4, "middle"), "Q4_1": (4, "real"), "Q5_0": (5, "middle"), "Q5_1": (5, "real"), "Q8_0": (8, "middle")}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_joined_comes_apart_again(kind):
    bits, zero = KINDS[kind]
    codes = torch.randint(0, 1 << bits, (7, 32), dtype=torch.uint8)
    floats = torch.randn(2, 7).half()
    blocks = Blocks(codes, floats[0], floats[1] if zero == "real" else None)
    again = split(join(blocks, bits), bits, zero)
    assert torch.equal(again.codes, codes) and torch.equal(again.scale, floats[0])
    assert (again.minimum is None) == (zero != "real")
    assert again.minimum is None or torch.equal(again.minimum, floats[1])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_gguf_py(kind):
    bits, zero = KINDS[kind]
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(bits))
    theirs = quants.quantize(weight.numpy(), GGMLQuantizationType[kind])
    assert np.array_equal(join(fit(weight, bits, zero), bits).numpy(), theirs)


def test_a_block_of_zeros_stays_one():
    blocks = fit(torch.zeros(1, 32), 4, "middle")
    assert float(blocks.scale) == 0 and bool((blocks.codes == 8).all())
