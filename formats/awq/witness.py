"""A second reading of our AWQ files, from the formula alone: it shares no code with the first.

Words are taken apart nibble by nibble in numpy: output o of a word lies in nibble 4·(o mod 2) + o div 2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.formats.files.safetensors.witness import read_with_library


def read_independently(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, fp32: what an engine computes with, w = scales·(codes − zeros)."""
    stored = read_with_library(directory)

    def read(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        try:
            words = stored(f"{module}.qweight").numpy()
        except KeyError:
            return stored(name).float()
        scales = stored(f"{module}.scales").float().numpy()
        zeros = _codes(stored(f"{module}.qzeros").numpy())
        which = np.arange(len(words)) * len(scales) // len(words)
        return torch.from_numpy(scales[which] * (_codes(words) - zeros[which])).T.contiguous()

    return read


def _codes(words: NDArray[np.int32]) -> NDArray[np.float32]:
    """words [n, m] → codes [n, 8·m]."""
    octets = np.ascontiguousarray(words, dtype="<i4").view(np.uint8).reshape(*words.shape, 4)
    nibbles = np.stack([octets & 15, octets >> 4], axis=-1).reshape(*words.shape, 8)
    places = [4 * (output % 2) + output // 2 for output in range(8)]
    return nibbles[..., places].reshape(len(words), -1).astype(np.float32)
