"""Makes tests/formats/golden/bitsandbytes.safetensors with bitsandbytes 0.50.2's own quantizer, on the CPU:

    python tests/conformance/bitsandbytes_golden.py tests/formats/golden

The file holds a weight, and its quantization state in every kind, so that the bytes can be compared without
the library.
"""

import sys
from pathlib import Path

import torch
from bitsandbytes import functional
from safetensors.torch import save_file

ROWS, COLUMNS, BLOCK = 8, 128, 64


def main() -> None:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[3, :BLOCK] = 0
    weight[5] = (weight[5] * 100).round() / 128
    held = {"weight": weight}
    for table in ("nf4", "fp4"):
        for nested in (False, True):
            packed, state = functional.quantize_4bit(
                weight, blocksize=BLOCK, quant_type=table, compress_statistics=nested
            )
            kind = f"{table}_double" if nested else table
            held[f"{kind}.weight"] = packed
            held |= {f"{kind}.weight.{name}": value.contiguous() for name, value in state.as_dict(packed=True).items()}
            held[f"{kind}.values"] = functional.dequantize_4bit(packed, state)
    codes, scale, _ = functional.int8_vectorwise_quant(weight.half())
    held |= {"int8.weight": codes, "int8.SCB": scale, "int8.values": functional.int8_vectorwise_dequant(codes, scale)}
    save_file(held, Path(sys.argv[1]) / "bitsandbytes.safetensors")


main()
