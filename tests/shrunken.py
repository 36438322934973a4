"""What tests of passes that change shapes share: steps of recipes, and a smaller model's logits by transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.passes.model.sequences import Sequences

DENSE32 = {"export": {"dialect": "dense", "dtype": "float32"}}
EVALUATE = {"evaluate": {"data": "builtin", "samples": 4, "seq_len": 32}}
LEARN = {
    "data": "builtin", "samples": 10, "seq_len": 32, "steps": 2, "batch": 4, "held_out": 2, "precision": "fp32",
}  # fmt: skip


def logits(model: Path, rows: Sequences) -> Tensor:
    """What transformers gives for `rows`."""
    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        answer: Tensor = found(rows.ids, use_cache=False).logits
    return answer
