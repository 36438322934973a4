"""bitsandbytes answers: its own functions decode the weights, transformers computes (see __init__.py).

Weights only: LLM.int8 also rounds inputs at run time. transformers' own loader does that.
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
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

_PACKAGES = ("bitsandbytes", "transformers", "torch")


@torch.no_grad()
def answer(path: str, sequences: list[list[int]]) -> dict[str, Any]:
    """Log-probabilities of the token after each sequence."""
    config = AutoConfig.from_pretrained(path)
    method = config.quantization_config["quant_method"]
    if method != "bitsandbytes":
        raise ValueError(f"quant_method is {method!r}, not 'bitsandbytes'")
    del config.quantization_config
    stored = {key: value for file in Path(path).glob("*.safetensors") for key, value in load_file(file).items()}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    load(model, decoded(stored))
    logits = [model(torch.tensor([sequence])).logits[0, -1] for sequence in sequences]
    found = packages_distributions()
    return {
        "versions": {name: version(found[name][0]) for name in _PACKAGES if name in found},
        "log_probs": [values.log_softmax(-1).tolist() for values in logits],
    }


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


def load(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Fill `model`; a tied head may be missing. Raises KeyError for any other tensor that is missing or too many."""
    found = model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if wrong := [*(set(found.missing_keys) - tied), *found.unexpected_keys]:
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
