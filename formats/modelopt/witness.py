"""A second reading of our modelopt files, from the formula alone: it shares no code with the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.compressed_tensors.witness import fp4_values, fp8_values, spread
from compress.formats.files.safetensors.witness import read_with_library

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
            codes, sizes = fp4_values(octets), whole * fp8_values(scales.view(torch.uint8).numpy())
        else:
            blocks = (len(octets) // _BLOCK, -1) if algorithm == "fp8_pb_wo" else (-1, 1)
            codes, sizes = fp8_values(octets), scales.numpy().reshape(blocks)
        return torch.from_numpy(codes * spread(sizes, codes.shape))

    return read
