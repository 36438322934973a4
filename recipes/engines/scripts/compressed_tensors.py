"""compressed-tensors answers: its own decompressor makes the weights, transformers computes (see __init__.py).

Weights only: inputs that the artifact wants rounded at run time are not. transformers' own loader does that.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

_PACKAGES = ("compressed_tensors", "transformers", "torch")


@torch.no_grad()
def answer(path: str, sequences: list[list[int]]) -> dict[str, Any]:
    """Log-probabilities of the token after each sequence."""
    config = AutoConfig.from_pretrained(path)
    settings = QuantizationConfig.model_validate(config.quantization_config)
    del config.quantization_config
    stored = {key: value for file in Path(path).glob("*.safetensors") for key, value in load_file(file).items()}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    load(model, decompressed(stored, schemes(config, settings), settings.format))
    logits = [model(torch.tensor([sequence])).logits[0, -1] for sequence in sequences]
    found = packages_distributions()
    return {
        "versions": {name: version(found[name][0]) for name in _PACKAGES if name in found},
        "log_probs": [values.log_softmax(-1).tolist() for values in logits],
    }


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


def load(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Fill `model`; a tied head may be missing. Raises KeyError for any other tensor that is missing or too many."""
    found = model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    tied = ["lm_head.weight"] if model.config.tie_word_embeddings else []
    extra = [name for name in found.unexpected_keys if not name.endswith(("_scale", "_zero_point"))]
    if wrong := [*(set(found.missing_keys) - set(tied)), *extra]:
        raise KeyError(f"missing or unexpected tensors: {', '.join(sorted(wrong)[:3])}")


def main() -> None:
    """One request in, one answer out; what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    with output:
        json.dump(answer(request["path"], request["sequences"]), output)


if __name__ == "__main__":
    main()
