"""AutoGPTQ 0.7.1 answers, with its kernels in plain torch."""

from __future__ import annotations

import torch
from auto_gptq import AutoGPTQForCausalLM

from . import next_log_probs

PACKAGES = ("auto_gptq", "transformers", "torch")


def answer(path: str, sequences: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of the token after each sequence."""
    # Its fast kernels need a GPU.
    plain = {"use_triton": False, "disable_exllama": True, "disable_exllamav2": True}
    model = AutoGPTQForCausalLM.from_quantized(path, device="cpu", torch_dtype=torch.float32, **plain)
    return next_log_probs(model.eval(), sequences)
