"""A second reading of our modelopt files, from the formula alone: it shares no code with the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.formats.compressed_tensors_witness import fp8_values, spread
from compress.formats.safetensors_witness import read_with_library

_BLOCK = 128


def read_independently(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, fp32: what an engine computes with, w = scale·code."""
    stored = read_with_library(directory)
    algorithm = json.loads((directory / "hf_quant_config.json").read_bytes())["quantization"]["quant_algo"]

    def read(name: str) -> Tensor:
        parent, _, kind = name.rpartition(".")
        if kind in ("k_scale", "v_scale"):
            return stored(f"{parent}.{kind[0]}_proj.{kind}").reshape(1)
        try:
            scales = stored(f"{parent}.weight_scale")
        except KeyError:
            return stored(name).float()
        if kind != "weight":
            return stored(name).float().reshape(-1)
        octets = stored(name).view(torch.uint8).numpy()
        if algorithm == "W4A16_NVFP4":
            whole = stored(f"{parent}.weight_scale_2").numpy()
            codes, sizes = _fp4(octets), whole * fp8_values(scales.view(torch.uint8).numpy())
        else:
            blocks = (len(octets) // _BLOCK, -1) if algorithm == "fp8_pb_wo" else (-1, 1)
            codes, sizes = fp8_values(octets), scales.numpy().reshape(blocks)
        return torch.from_numpy(codes * spread(sizes, codes.shape))

    return read


def _fp4(octets: NDArray[np.uint8]) -> NDArray[np.float32]:
    """E2M1 by its definition, the low half of each byte first: sign, 2 bits of exponent with bias 1, 1 of mantissa."""
    halves = np.stack([octets & 15, octets >> 4], 2).reshape(len(octets), -1)
    exponent, mantissa = (halves >> 1 & 3).astype(np.int32), (halves & 1).astype(np.float32)
    values = np.where(exponent == 0, mantissa / 2, (2 + mantissa) * 2.0 ** (exponent - 2))
    return np.where(halves & 8, -values, values).astype(np.float32)
