"""bitsandbytes' 4 bits through transformers: MODEL ROWS OUTPUT {"quant_type": "nf4" | "fp4", "double_quant": false}."""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


def main(source: str, rows: str, output: str, settings: str) -> None:
    """Quantize and save; there is nothing to calibrate."""
    chosen = json.loads(settings)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=chosen["quant_type"],
        bnb_4bit_use_double_quant=chosen.get("double_quant", False),
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
