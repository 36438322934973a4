"""Makes tests/formats/golden/autoawq_*.safetensors with AutoAWQ 0.2.9's own packer, on the CPU.

AutoAWQ needs names that transformers 5 no longer has, so it runs in an environment of its own:

    python3.11 -m venv autoawq
    autoawq/bin/pip install torch==2.13.0
    autoawq/bin/pip install "numpy<2.3" transformers==4.51.3 datasets==3.6.0 accelerate==1.6.0 zstandard triton
    autoawq/bin/pip install --no-deps autoawq==0.2.9
    autoawq/bin/python tests/conformance/autoawq_golden.py tests/formats/golden

Each file holds what went in (codes, scales, zeros), what came out (qweight, qzeros, scales), and what AutoAWQ
itself decodes it to. The test compares bytes, so it needs neither this script nor AutoAWQ.
"""

import sys
from pathlib import Path

import torch
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file
from torch import nn

INPUTS, OUTPUTS = 96, 64  # the packer rounds outputs down to a multiple of 32


def golden(group_size: int, signed: bool) -> dict[str, torch.Tensor]:
    """Random codes, packed by AutoAWQ from the weights that they decode to."""
    generator = torch.Generator().manual_seed(group_size + signed)
    size = INPUTS if group_size == -1 else group_size
    groups = INPUTS // size
    codes = torch.randint(0, 16, (OUTPUTS, INPUTS), generator=generator)
    # Powers of two: the packer divides weights by scales, and must find the codes that we meant.
    scales = 2.0 ** torch.randint(-9, -5, (OUTPUTS, groups), generator=generator)
    if signed:
        scales *= torch.randint(0, 2, scales.shape, generator=generator) * 2 - 1
    zeros = torch.randint(0, 16, (OUTPUTS, groups), generator=generator)
    which = torch.arange(INPUTS) // size
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = scales[:, which] * (codes - zeros[:, which])
    packed = WQLinear_GEMM.from_linear(linear, 4, size, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    values = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, size).T
    given = {"codes": codes.byte(), "scale": scales.half(), "zero": zeros.byte()}
    return {**{f"in.{name}": tensor for name, tensor in given.items()},
            **{f"out.{name}": tensor.contiguous() for name, tensor in packed.state_dict().items()},
            "values": values.float().contiguous()}  # fmt: skip


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    save_file(golden(32, signed=False), directory / "autoawq_g32.safetensors")
    save_file(golden(32, signed=True), directory / "autoawq_g32_signed.safetensors")
    save_file(golden(-1, signed=False), directory / "autoawq_per_channel.safetensors")


main()
