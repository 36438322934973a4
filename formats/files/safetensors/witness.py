"""The `safetensors` library's own reading of a directory: the independent judge of what we wrote.

For our own files only: the library memory-maps, and a file that is cut short meanwhile ends the process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor


def read_with_library(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, as the `.safetensors` files of `directory` store them; KeyError for other names."""
    files: list[Any] = [safe_open(path, "pt") for path in sorted(directory.glob("*.safetensors"))]
    homes = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # it is no mapping

    def read(name: str) -> Tensor:
        tensor: Tensor = homes[name].get_tensor(name)
        return tensor

    return read


def read_floats(directory: Path) -> Callable[[str], Tensor]:
    """`read_with_library`, in fp32."""
    read = read_with_library(directory)
    return lambda name: read(name).float()


def codes_in(words: NDArray[np.int32], bits: int, count: int) -> NDArray[np.float32]:
    """words [n, m] → the first `count` codes of `bits` (at most 8) in the stream of bits of each row, lowest first.

    Each code is cut out of the two bytes that it begins in, where kernels/pack.py shifts words.
    """
    octets = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    pairs = octets.astype(np.uint16)
    pairs[:, :-1] |= pairs[:, 1:] << 8
    begin = np.arange(count) * bits
    codes = pairs[:, begin // 8] >> (begin % 8).astype(np.uint16) & (1 << bits) - 1
    return codes.astype(np.float32)
