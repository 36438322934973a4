"""GPTQModel answers, with its own loader and its kernels in plain torch (see __init__.py)."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import packages_distributions, version
from typing import Any

# Nothing is compiled for a few tokens, neither by torch nor, with the backend below, by GPTQModel: it takes minutes.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch

_PACKAGES = ("gptqmodel", "transformers", "torch")
_CORES = 4


@torch.no_grad()
def answer(path: str, sequences: list[list[int]]) -> dict[str, Any]:
    """Log-probabilities of the token after each sequence."""
    cores = os.cpu_count() or 1
    # GPTQModel 7.7 plans its threads for four cores or more, and fails with fewer.
    os.cpu_count = lambda: max(_CORES, cores)
    from gptqmodel import BACKEND, GPTQModel

    plain_torch = BACKEND.AWQ_TORCH if _method(path) == "awq" else BACKEND.GPTQ_TORCH
    model = GPTQModel.load(path, device="cpu", backend=plain_torch).model.eval()
    logits = [model(torch.tensor([sequence])).logits[0, -1] for sequence in sequences]
    found = packages_distributions()
    return {
        "versions": {name: version(found[name][0]) for name in _PACKAGES if name in found},
        "log_probs": [values.float().log_softmax(-1).tolist() for values in logits],
    }


def _method(path: str) -> str:
    """What config.json calls the container; empty for none."""
    try:
        with open(f"{path}/config.json") as file:
            return str(json.load(file)["quantization_config"]["quant_method"])
    except (OSError, KeyError):
        return ""


def main() -> None:
    """One request in, one answer out; what libraries print goes to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    with output:
        json.dump(answer(request["path"], request["sequences"]), output)


if __name__ == "__main__":
    main()
