"""A second reading of our compressed-tensors files, from the formula alone: it shares no code with the first.

The stream of bits is taken apart bit by bit (numpy.unpackbits) where kernels/pack.py shifts words, and a
layer's scheme is found by its name among the targets, where the first goes by shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.formats.safetensors_witness import read_with_library

Floats = NDArray[np.float32]


def read_independently(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, fp32: what an engine computes with, w = scale·(code − zero)."""
    stored = read_with_library(directory)
    settings = json.loads((directory / "config.json").read_bytes())["quantization_config"]

    def read(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        try:
            scales = stored(f"{module}.weight_scale").float().numpy()
        except KeyError:
            return stored(name).float()
        weights = _weights(settings, module)
        rows, columns = stored(f"{module}.weight_shape").tolist()
        bits = weights["num_bits"]
        codes = _codes(stored(f"{module}.weight_packed").numpy(), columns, bits)
        zeros: Floats = np.full_like(scales, 2 ** (bits - 1))
        if not weights["symmetric"]:
            zeros = _codes(stored(f"{module}.weight_zero_point").numpy().T, rows, bits).T
        group = np.arange(columns) // (weights["group_size"] or columns)
        return torch.from_numpy(scales[:, group] * (codes - zeros[:, group]))

    return read


def _weights(settings: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What the configuration says of the weights of `module`."""
    assert module not in settings["ignore"]
    groups = settings["config_groups"].values()
    found = [group for group in groups if module in group["targets"] or group["targets"] == ["Linear"]]
    weights: Mapping[str, Any] = found[0]["weights"]
    return weights


def _codes(words: NDArray[np.int32], count: int, bits: int) -> Floats:
    """words [n, m] → the first `count` codes in the bits of each row, lowest bit first."""
    octets = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    stream = np.unpackbits(octets, axis=1, bitorder="little")[:, : count * bits].reshape(len(words), count, bits)
    return np.packbits(stream, axis=2, bitorder="little")[:, :, 0].astype(np.float32)
