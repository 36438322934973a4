"""compressed-tensors answers: its own decompressor makes the weights, transformers computes.

Weights only: inputs that the artifact wants rounded at run time are not. transformers' own loader does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from . import in_float32, next_log_probs, stored

PACKAGES = ("compressed_tensors", "transformers", "torch")


def answer(path: str, sequences: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the token after each sequence."""
    config = AutoConfig.from_pretrained(path)
    settings = QuantizationConfig.model_validate(config.quantization_config)
    del config.quantization_config
    with torch.no_grad():
        weights = decompressed(stored(path), schemes(config, settings), settings.format)
    # Scales of inputs and of the cache stay over.
    return next_log_probs(in_float32(config, weights, ignored=("_scale", "_zero_point")), sequences)


def schemes(config: Any, settings: QuantizationConfig) -> dict[str, Any]:
    """Module → the scheme that the library finds for its weight, and its type."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    apply_quantization_config(model, settings)
    return {
        name: (type(module), module.quantization_scheme)
        for name, module in model.named_modules()
        if hasattr(module, "quantization_scheme") and module.quantization_scheme.weights  # not a cache's
    }


def decompressed(stored: dict[str, Tensor], schemes: Mapping[str, Any], default: str) -> dict[str, Tensor]:
    """The stored tensors with every quantized module's own replaced by its weight."""
    for module, (kind, scheme) in schemes.items():
        start = f"{module}."
        parts = {key.removeprefix(start): stored.pop(key) for key in list(stored) if key.startswith(start)}
        chosen = scheme.format or (infer_module_format(kind, scheme).value if default == "mixed-precision" else default)
        compressor = BaseCompressor.get_value_from_registry(getattr(chosen, "value", chosen))
        values = compressor.decompress(parts, scheme)
        stored |= {start + part: values[part] for part in ("weight", "bias") if part in values}
    return stored
