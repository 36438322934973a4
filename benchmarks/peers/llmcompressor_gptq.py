"""The peer's side of fixed work S, for an environment with llmcompressor: MODEL ROWS.json OUTPUT.

Writes the quantized weights as a dense checkpoint (the values that the codes stand for), so that one
evaluator measures everybody.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

SCHEME = {
    "group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64},
    }
}


def main(source: str, rows: str, output: str) -> None:
    """Quantize and save."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = json.loads(Path(rows).read_text())
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    oneshot(
        model=model,
        dataset=data,
        recipe=GPTQModifier(config_groups=SCHEME, ignore=["lm_head"]),
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
    )
    weights = {name: value for name, value in model.state_dict().items() if name.endswith((".weight", ".bias"))}
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    dense.load_state_dict(weights, strict=False)
    dense.save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
