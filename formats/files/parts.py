"""Writing containers that store one weight as several tensors beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from compress.formats.base import Progress
from compress.formats.files.safetensors.shards import Shards, write_shards

T = TypeVar("T")


def beside(name: str, parts: Mapping[str, T]) -> dict[str, T]:
    """`X.weight` and what belongs to qweight, scales, … → the same by `X.qweight`, `X.scales`, …"""
    return {f"{name.removesuffix('.weight')}.{part}": value for part, value in parts.items()}


def write_parts(
    directory: Path,
    shards: Shards,
    homes: Mapping[str, str],
    encode: Callable[[str], dict[str, Tensor]],
    progress: Progress,
) -> None:
    """Write the planned `shards`; `homes` says of each part which weight it belongs to.

    A weight's parts are asked for one after the other: `encode` reads and packs it once. Raises StorageError.
    """
    held: dict[str, Tensor] = {}

    def fill(part: str) -> Tensor:
        if part not in held:
            progress(homes[part])
            held.clear()
            held.update(encode(homes[part]))
        return held[part]

    write_shards(directory, shards, fill)
