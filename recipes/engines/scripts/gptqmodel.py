"""GPTQModel answers, with its own loader and its kernels in plain torch."""

from __future__ import annotations

import json
import os

# Nothing is compiled for a few tokens, neither by torch nor, with the backend below, by GPTQModel: it takes minutes.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

from . import next_log_probs

PACKAGES = ("gptqmodel", "transformers", "torch")
_CORES = 4


def answer(path: str, sequences: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the token after each sequence."""
    cores = os.cpu_count() or 1
    # GPTQModel 7.7 plans its threads for four cores or more, and fails with fewer.
    os.cpu_count = lambda: max(_CORES, cores)
    from gptqmodel import BACKEND, GPTQModel

    plain_torch = BACKEND.AWQ_TORCH if _method(path) == "awq" else BACKEND.GPTQ_TORCH
    return next_log_probs(GPTQModel.load(path, device="cpu", backend=plain_torch).model.eval(), sequences)


def _method(path: str) -> str:
    """What config.json calls the container; empty for none."""
    try:
        with open(f"{path}/config.json") as file:
            return str(json.load(file)["quantization_config"]["quant_method"])
    except (OSError, KeyError):
        return ""
