"""A second reading of our GPTQ files, from the formula alone: it shares no code with the first.

The stream of bits is taken apart bit by bit (numpy.unpackbits) where kernels/pack.py shifts words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.formats.files.safetensors.witness import read_with_library


def read_independently(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, fp32: what an engine computes with, w = scales[g_idx]·(codes − zeros[g_idx])."""
    stored = read_with_library(directory)
    settings = json.loads((directory / "quantize_config.json").read_bytes())
    offset = {"gptq": 1, "gptq_v2": 0}[settings["checkpoint_format"]]

    def read(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        try:
            words = stored(f"{module}.qweight").numpy()
        except KeyError:
            return stored(name).float()
        scales = stored(f"{module}.scales").float().numpy()
        groups = stored(f"{module}.g_idx").numpy()
        codes = _codes(words.T, len(groups)).T
        zeros = _codes(stored(f"{module}.qzeros").numpy(), scales.shape[1]) + offset
        return torch.from_numpy(scales[groups] * (codes - zeros[groups])).T.contiguous()

    return read


def _codes(words: NDArray[np.int32], count: int) -> NDArray[np.float32]:
    """words [n, m] → the `count` codes in the bits of each row, lowest bit first."""
    octets = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    bits = np.unpackbits(octets, axis=1, bitorder="little").reshape(len(words), count, -1)
    return np.packbits(bits, axis=2, bitorder="little")[:, :, 0].astype(np.float32)
