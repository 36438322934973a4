"""A second reading of our GPTQ files, from the formula alone: it shares no code with the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.files.safetensors.witness import codes_in, read_with_library


def read_independently(directory: Path) -> Callable[[str], Tensor]:
    """Tensors by name, fp32: what an engine computes with, w = scales[g_idx]·(codes − zeros[g_idx])."""
    stored = read_with_library(directory)
    settings = json.loads((directory / "quantize_config.json").read_bytes())
    offset = {"gptq": 1, "gptq_v2": 0}[settings["checkpoint_format"]]

    def read(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        try:
            words = stored(f"{module}.qweight").numpy()
        except KeyError:
            return stored(name).float()
        scales, groups = stored(f"{module}.scales").float().numpy(), stored(f"{module}.g_idx").numpy()
        bits = words.size * 32 // (len(groups) * scales.shape[1])
        zeros = codes_in(stored(f"{module}.qzeros").numpy(), bits, scales.shape[1]) + offset
        steps = codes_in(words.T, bits, len(groups)) - zeros.T[:, groups]
        return torch.from_numpy(scales.T[:, groups] * steps).contiguous()

    return read
