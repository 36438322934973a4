"""llama.cpp's own quantizer on the types of another file: python llamacpp_peer.py F32.gguf IMATRIX OURS.gguf OUT.gguf.

Every tensor gets the type that it has in OURS, so both files take the same bytes. Weights come from F32, which is in
GGUF's order already, importances from IMATRIX, as llama-quantize passes them: the mean of x² over the tokens. Prints
the seconds that quantizing took, on two threads. The library is that in PyPI's `xllamacpp`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.gguf.blocks.types import DenseType
from compress.formats.gguf.file import GGUFFile, write_gguf
from compress.formats.gguf.importance.entry import Entry
from compress.formats.gguf.importance.file import read_imatrix

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from ggml import encoded

THREADS = 2


def main(dense: str, matrix: str, ours: str, out: str) -> None:
    """Write OUT, print the seconds of its quantizing."""
    source, like, entries = GGUFFile(Path(dense)), GGUFFile(Path(ours)), read_imatrix(Path(matrix))
    seconds = 0.0

    def fill(name: str) -> bytes | bytearray:
        nonlocal seconds
        kind = like.header.tensors[name].type
        if isinstance(kind, DenseType):
            return like.read_raw(name)
        weight = source.read(name)
        assert isinstance(weight, Tensor)
        started = time.perf_counter()
        data = threaded(weight, kind.name, importance(entries.get(name), weight.shape[-1]))
        seconds += time.perf_counter() - started
        return data

    infos = like.header.tensors.values()
    write_gguf(Path(out), like.header.metadata, [(info.name, info.shape, info.type) for info in infos], fill)
    print(json.dumps({"quantize_seconds": round(seconds, 2), "file_bytes": os.path.getsize(out)}))


def importance(found: Entry | None, columns: int) -> Tensor | None:
    """What llama-quantize hands on of a tensor's entry."""
    if found is None:
        return None
    sums, tokens = found.matrix(0, 1, columns)
    return sums / tokens if tokens else None


def threaded(weight: Tensor, kind: str, vector: Tensor | None) -> bytes:
    """A part of the rows on each thread; rows do not depend on each other."""
    parts = torch.tensor_split(weight, THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        return b"".join(pool.map(lambda part: encoded(part, kind, vector), [part for part in parts if len(part)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
