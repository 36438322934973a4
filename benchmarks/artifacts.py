"""Bytes of an artifact, from the headers of its safetensors files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LINEAR = re.compile(r"\.layers\.\d+\..*_proj\.")


def file_bytes(folder: Path) -> int:
    """Of all weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def linear_bytes(folder: Path) -> int:
    """Of everything stored under the decoder's linears: codes, scales, zero points, tables, indices."""
    spans = (entry["data_offsets"] for entry in _linears(folder))
    return sum(stop - start for start, stop in spans)


def linear_weights(folder: Path) -> int:
    """How many weights the decoder's linears have, in a dense checkpoint."""
    return sum(math.prod(entry["shape"]) for entry in _linears(folder))


def _linears(folder: Path) -> Iterator[dict[str, Any]]:
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        yield from (entry for name, entry in header.items() if _LINEAR.search(name))
