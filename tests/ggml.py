"""llama.cpp's own quantizer and gguf-py's decoders, for tests of GGUF's block types."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor


def kind(name: str) -> gguf.GGMLQuantizationType:
    """gguf-py's word for a type."""
    return gguf.GGMLQuantizationType[name.upper()]


def decoded(raw: bytes | memoryview, name: str, rows: int) -> Tensor:
    """What gguf-py makes of a matrix of so many rows: fp32."""
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(np.frombuffer(raw, np.uint8).reshape(rows, -1), kind(name))
    return torch.from_numpy(values)


def encoded(weight: Tensor, name: str, importance: Tensor | None = None) -> bytes:
    """`weight` [rows, columns] fp32 as llama.cpp quantizes it, with an `importance` [columns] of columns or without.

    Skips the test where the library is not installed.
    """
    block, size = gguf.GGML_QUANT_SIZES[kind(name)]
    rows, columns = weight.shape
    out = np.empty(rows * columns // block * size, np.uint8)
    source = np.ascontiguousarray(weight.numpy(), np.float32)
    matrix = None if importance is None else np.ascontiguousarray(importance.numpy(), np.float32)
    pointer = None if matrix is None else matrix.ctypes.data
    written = _library().ggml_quantize_chunk(
        int(kind(name)), source.ctypes.data, out.ctypes.data, 0, rows, columns, pointer
    )
    assert written == out.nbytes
    return out.tobytes()


@cache
def _library() -> ctypes.CDLL:
    """The shared library in PyPI's wheel xllamacpp: it exports ggml's functions."""
    found = find_spec("xllamacpp")
    if found is None or found.origin is None:
        pytest.skip("xllamacpp is not installed: pip install xllamacpp")
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library
