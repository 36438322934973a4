"""bitsandbytes answers: its own functions decode the weights, transformers computes.

Weights only: LLM.int8 also rounds inputs at run time. transformers' own loader does that.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant
from torch import Tensor
from transformers import AutoConfig

from . import in_float32, next_log_probs, stored

PACKAGES = ("bitsandbytes", "transformers", "torch")


def answer(path: str, sequences: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the token after each sequence."""
    config = AutoConfig.from_pretrained(path)
    method = config.quantization_config["quant_method"]
    if method != "bitsandbytes":
        raise ValueError(f"quant_method is {method!r}, not 'bitsandbytes'")
    del config.quantization_config
    return next_log_probs(in_float32(config, decoded(stored(path))), sequences)


def decoded(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stored tensors with every quantized weight's own replaced by its values."""
    weights = {}
    for name, value in stored.items():
        state = {key.removeprefix(f"{name}."): part for key, part in stored.items() if key.startswith(f"{name}.")}
        scale = stored.get(f"{name.removesuffix('weight')}SCB") if name.endswith(".weight") else None
        if state:
            weights[name] = dequantize_4bit(value, QuantState.from_dict(state, device=torch.device("cpu")))
        elif scale is not None:
            weights[name] = int8_vectorwise_dequant(value, scale)
        elif ".weight." not in name and not name.endswith(("SCB", "weight_format")):
            weights[name] = value
    return weights
