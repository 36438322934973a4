"""A second reading of our bitsandbytes files, from what stands in them alone: it shares no code with the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.formats.files.safetensors.witness import read_with_library


def read_independently(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, fp32: quant_map[code]·absmax by the block, or int8·SCB/127 by the row."""
    stored = read_with_library(directory)
    settings = json.loads((directory / "config.json").read_bytes())["quantization_config"]
    state = f"quant_state.bitsandbytes__{settings['bnb_4bit_quant_type']}"

    def part(name: str) -> NDArray[Any] | None:
        try:
            return np.asarray(stored(name).numpy())
        except KeyError:
            return None

    def read(name: str) -> Tensor:
        rows, text = part(f"{name.removesuffix('.weight')}.SCB"), part(f"{name}.{state}")
        if rows is not None:
            return torch.from_numpy(stored(name).numpy() * (rows[:, None].astype(np.float64) / 127)).float()
        if text is None:
            return stored(name).float()
        said = json.loads(bytes(text))
        scales = stored(f"{name}.absmax").numpy()
        if "nested_offset" in said:
            outer = np.repeat(stored(f"{name}.nested_absmax").numpy(), said["nested_blocksize"])[: scales.size]
            inner = stored(f"{name}.nested_quant_map").numpy()[scales]
            scales = inner * outer + np.float32(said["nested_offset"])
        octets = stored(name).numpy().flatten()
        codes = np.array([octets // 16, octets % 16]).T.reshape(scales.size, said["blocksize"])
        values = stored(f"{name}.quant_map").numpy()[codes] * scales[:, None]
        return torch.from_numpy(values.reshape(said["shape"]))

    return read
