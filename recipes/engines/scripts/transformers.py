"""transformers answers: whatever its own loader makes of the artifact's quantization_config (see __init__.py)."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

# Nothing is compiled for a few tokens, neither by torch nor, with the backends below, by GPTQModel: it takes minutes.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

_PACKAGES = ("transformers", "torch", "gptqmodel", "compressed_tensors", "bitsandbytes")


@torch.no_grad()
def answer(path: str, sequences: list[list[int]]) -> dict[str, Any]:
    """Log-probabilities of the token after each sequence."""
    model = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", **options(Path(path))).eval()
    logits = [model(torch.tensor([sequence])).logits[0, -1] for sequence in sequences]
    found = packages_distributions()
    return {
        "versions": {name: version(found[name][0]) for name in _PACKAGES if name in found},
        "log_probs": [values.float().log_softmax(-1).tolist() for values in logits],
    }


def options(path: Path) -> dict[str, Any]:
    """How to load the artifact: integer kernels in plain torch."""
    if (path / "model.gguf").is_file():
        return {"gguf_file": "model.gguf"}
    settings = json.loads((path / "config.json").read_text()).get("quantization_config", {})
    if settings.get("quant_method") == "gptq":
        return {"quantization_config": GPTQConfig(bits=settings["bits"], backend="gptq_torch")}
    if settings.get("quant_method") == "awq":
        return {"quantization_config": AwqConfig(backend="torch_awq")}
    return {}


def main() -> None:
    """One request in, one answer out; what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    with output:
        json.dump(answer(request["path"], request["sequences"]), output)


if __name__ == "__main__":
    main()
