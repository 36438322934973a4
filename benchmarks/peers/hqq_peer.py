"""HQQ, 4 bits in groups of 64 along the inputs, scale and zero point of 16 bits: MODEL ROWS OUTPUT SETTINGS.

No container of ours holds its real zero points: its own library decodes, and sizes.json has the bytes of its codes,
scales and zero points.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: str, rows: str, output: str, settings: str) -> None:
    """Quantize every decoder linear, put its decoded values in its place, and save."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)
    size = 0
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            quantized = HQQLinear(module, config, compute_dtype=torch.float32, device="cpu", del_orig=False)
            module.weight.data = quantized.dequantize().to(torch.float32)
            scales = 2 * (quantized.meta["scale"].numel() + quantized.meta["zero"].numel())
            size += quantized.W_q.numel() * quantized.W_q.element_size() + scales
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)
    Path(output, "sizes.json").write_text(json.dumps({"linear_bytes": size, "file_bytes": None}))


if __name__ == "__main__":
    main(*sys.argv[1:])
