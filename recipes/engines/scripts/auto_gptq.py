"""AutoGPTQ 0.7.1 answers, with its kernels in plain torch (see __init__.py)."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import packages_distributions, version
from typing import Any

import torch
from auto_gptq import AutoGPTQForCausalLM

_PACKAGES = ("auto_gptq", "transformers", "torch")


@torch.no_grad()
def answer(path: str, sequences: list[list[int]]) -> dict[str, Any]:
    """Log-probabilities of the token after each sequence."""
    # Its fast kernels need a GPU.
    plain = {"use_triton": False, "disable_exllama": True, "disable_exllamav2": True}
    model = AutoGPTQForCausalLM.from_quantized(path, device="cpu", torch_dtype=torch.float32, **plain).eval()
    logits = [model(input_ids=torch.tensor([sequence])).logits[0, -1] for sequence in sequences]
    found = packages_distributions()
    return {
        "versions": {name: version(found[name][0]) for name in _PACKAGES if name in found},
        "log_probs": [values.float().log_softmax(-1).tolist() for values in logits],
    }


def main() -> None:
    """One request in, one answer out; what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    with output:
        json.dump(answer(request["path"], request["sequences"]), output)


if __name__ == "__main__":
    main()
