"""NVFP4's bytes against gguf-py and llama.cpp's own quantizer."""

import numpy as np
import pytest
import torch
from ggml import decoded, encoded

from compress.formats.errors import InputError
from compress.formats.gguf.blocks.nvfp4 import join, split
from compress.formats.gguf.blocks.types import BLOCKS
from compress.kernels.qtensor import QTensor

NVFP4 = BLOCKS["nvfp4"]


def test_every_byte_of_a_scale_and_of_codes_decodes_as_in_gguf_py() -> None:
    """Also 0 and 0x7F, which would be no number: both are 0 there."""
    scales = np.arange(128, dtype=np.uint8).reshape(32, 4)
    codes = np.arange(32 * 32, dtype=np.uint32).astype(np.uint8).reshape(32, 32)
    raw = np.concatenate([scales, codes], 1).tobytes()
    tensor = NVFP4.decode(raw, (16, 128))
    assert isinstance(tensor, QTensor)
    assert torch.equal(tensor.dequantize(), decoded(raw, "nvfp4", 16))
    again = NVFP4.pack(tensor)
    assert again.tobytes()[36:-36] == raw[36:-36]  # all but the blocks of 0 and 0x7F
    assert torch.equal(decoded(again, "nvfp4", 16), tensor.dequantize())


def test_what_llama_cpp_writes_is_read_and_written_again() -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    raw = encoded(weight, "nvfp4")
    tensor = NVFP4.decode(raw, (8, 256))
    assert isinstance(tensor, QTensor)
    assert torch.equal(tensor.dequantize(), decoded(raw, "nvfp4", 8)) and NVFP4.pack(tensor) == raw
    assert float((tensor.dequantize() - weight).square().mean()) < 0.01


def test_a_block_by_hand() -> None:
    """Scales 1, 2, 0.5 and 0.25; the low half of byte j of a part is code j of its 16, the high half code j + 8."""
    raw = bytes([0x38, 0x40, 0x30, 0x28]) + bytes([0x21] + [0] * 7) * 4
    fields = split(torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(1, 36))
    assert fields["codes"].view(4, 16)[:, [0, 8]].tolist() == [[1, 2]] * 4
    assert join(fields).numpy().tobytes() == raw
    tensor = NVFP4.decode(raw, (1, 64))
    assert isinstance(tensor, QTensor)
    assert tensor.dequantize().view(4, 16)[:, [0, 8]].tolist() == [[0.5, 1], [1, 2], [0.25, 0.5], [0.125, 0.25]]


def test_scales_with_a_sign_are_refused() -> None:
    with pytest.raises(InputError, match="0xb8"):
        split(torch.full((1, 36), 0xB8, dtype=torch.uint8))
