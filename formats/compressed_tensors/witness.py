"""A second reading of our compressed-tensors files, from the formula alone: it shares no code with the first.

A layer's scheme is found by its name among the targets, where the first goes by shapes.
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

from compress.formats.files.safetensors.witness import codes_in, read_with_library

Floats = NDArray[np.float32]


def read_independently(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, fp32: what an engine computes with, w = scale·(code − zero); scales of the cache flat."""
    stored = read_with_library(directory)
    settings = json.loads((directory / "config.json").read_bytes())["quantization_config"]

    def read(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        try:
            scales = stored(f"{module}.weight_scale").float().numpy()
        except KeyError:
            values = stored(name).float()
            return values.flatten() if name.endswith((".k_scale", ".v_scale")) else values  # [heads, 1, 1] in files
        group = _group(settings, module)
        weights = group["weights"]
        if group["format"].endswith("fp4-pack-quantized"):
            codes, sizes = fp4_values(stored(f"{module}.weight_packed").numpy()), _sizes(stored, module, scales)
            return torch.from_numpy(codes * spread(sizes, codes.shape))
        if weights["type"] == "float":
            codes = fp8_values(stored(name).view(torch.uint8).numpy())
            block = 128 if weights["strategy"] == "block" else None
            return torch.from_numpy(codes * spread(scales.reshape(-1, scales.shape[-1]), codes.shape, block))
        codes, zeros = _integers(stored, module, group)
        return torch.from_numpy(spread(scales, codes.shape) * (codes - spread(zeros, codes.shape)))

    return read


def _integers(stored: Callable[[str], Tensor], module: str, group: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """Codes [out, in] and zero points [out or 1, groups or 1], both from 0 or both signed."""
    weights = group["weights"]
    zeros: Floats = np.zeros((1, 1), np.float32)
    if group["format"] == "int-quantized":
        if not weights["symmetric"]:
            zeros = stored(f"{module}.weight_zero_point").numpy().astype(np.float32)
        return stored(f"{module}.weight").numpy().astype(np.float32), zeros
    (rows, columns), bits = stored(f"{module}.weight_shape").tolist(), weights["num_bits"]
    zeros = zeros + np.float32(2 ** (bits - 1))
    if not weights["symmetric"]:
        zeros = codes_in(stored(f"{module}.weight_zero_point").numpy().T, bits, rows).T
    return codes_in(stored(f"{module}.weight_packed").numpy(), bits, columns), zeros


def spread(values: Floats, shape: tuple[int, ...], block: int | None = None) -> Floats:
    """values [m, n] over the regions of a matrix of this shape: m × n equal ones, or blocks."""
    for axis, extent in enumerate(shape):
        values = np.take(values, np.arange(extent) // (block or extent // values.shape[axis]), axis)
    return values


def fp8_values(octets: NDArray[np.uint8]) -> Floats:
    """E4M3FN by its definition: sign, 4 bits of exponent with bias 7, 3 of mantissa; exponent 0 is subnormal."""
    sign = 1 - 2.0 * (octets >> 7)
    exponent, mantissa = (octets >> 3 & 15).astype(np.int32), (octets & 7).astype(np.float64)
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    return (sign * values).astype(np.float32)


def fp4_values(octets: NDArray[np.uint8]) -> Floats:
    """E2M1 by its definition, the low half of each byte first: sign, 2 bits of exponent with bias 1, 1 of mantissa."""
    halves = np.stack([octets & 15, octets >> 4], 2).reshape(len(octets), -1)
    exponent, mantissa = (halves >> 1 & 3).astype(np.int32), (halves & 1).astype(np.float32)
    values = np.where(exponent == 0, mantissa / 2, (2 + mantissa) * 2.0 ** (exponent - 2))
    return np.where(halves & 8, -values, values).astype(np.float32)


def _sizes(stored: Callable[[str], Tensor], module: str, scales: Floats) -> Floats:
    """What blocks of FP4 are multiplied by: two to the power of an exponent, or two scales, one a divisor."""
    try:
        whole: Floats = stored(f"{module}.weight_global_scale").numpy()
    except KeyError:
        return (2.0 ** (scales.astype(np.int32) - 127)).astype(np.float32)
    return scales * np.reciprocal(whole)


def _group(settings: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What the configuration says of `module`."""
    assert module not in settings["ignore"]
    groups = settings["config_groups"].values()
    found: list[Mapping[str, Any]] = [
        group for group in groups if module in group["targets"] or group["targets"] == ["Linear"]
    ]
    return found[0]
