"""The `safetensors` library's own reading of a directory: the independent judge of what we wrote.

For our own files only: the library memory-maps, and a file that is cut short meanwhile ends the process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


def read_with_library(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, as the `.safetensors` files of `directory` store them; KeyError for other names."""
    homes: dict[str, Path] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            homes.update(dict.fromkeys(file.keys(), path))

    def read(name: str) -> Tensor:
        with safe_open(homes[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    return read


def read_floats(directory: Path) -> Callable[[str], Tensor]:
    """`read_with_library`, in fp32."""
    read = read_with_library(directory)
    return lambda name: read(name).float()
