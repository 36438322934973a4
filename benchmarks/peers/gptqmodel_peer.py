"""GPTQModel, 4 bits symmetric (AWQ: asymmetric) in groups of 64: MODEL ROWS OUTPUT {"method": "gptq" | "awq"}."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

# GPTQModel 7.7 plans its threads, on import, for four cores or more, and fails with fewer.
os.cpu_count = lambda: 4


def main(source: str, rows: str, output: str, settings: str) -> None:
    """Quantize and save."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    method = json.loads(settings)["method"]
    config = QuantizeConfig(bits=4, group_size=64, sym=method == "gptq", quant_method=method, device="cpu")
    # Its AWQ layers refuse float32.
    model = GPTQModel.load(source, config, dtype=torch.float16 if method == "awq" else torch.float32)
    ids = json.loads(Path(rows).read_text())
    data = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    backend = BACKEND.AUTO if method == "awq" else BACKEND.GPTQ_TORCH
    model.quantize(data, batch_size=4, backend=backend)
    model.save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
