"""Makes tests/formats/golden/autogptq_*.safetensors with AutoGPTQ 0.7.1's own packer, on the CPU.

AutoGPTQ needs names that transformers 5 no longer has, so it runs in an environment of its own:

    python3.11 -m venv autogptq
    autogptq/bin/pip install torch==2.13.0
    autogptq/bin/pip install "numpy<2.3" transformers==4.49.0 datasets==3.6.0 peft==0.14.0 accelerate==1.6.0 \
        setuptools wheel
    BUILD_CUDA_EXT=0 autogptq/bin/pip install --no-build-isolation auto-gptq==0.7.1
    autogptq/bin/python tests/conformance/autogptq_golden.py tests/formats/golden

Each file holds what went in (codes, scales, zeros) and what came out (qweight, qzeros, scales, g_idx). The
test compares bytes, so it needs neither this script nor AutoGPTQ.
"""

import sys
from pathlib import Path

import torch
from auto_gptq.nn_modules.qlinear.qlinear_cuda_old import QuantLinear
from safetensors.torch import save_file
from torch import nn

INPUTS, OUTPUTS = 64, 32
GROUP_SIZES = {2: 32, 3: 16, 4: 64, 8: -1}


def golden(bits: int, symmetric: bool) -> dict[str, torch.Tensor]:
    """Random codes, packed by AutoGPTQ from the weights that they decode to."""
    generator = torch.Generator().manual_seed(bits)
    group_size = INPUTS if GROUP_SIZES[bits] == -1 else GROUP_SIZES[bits]
    groups = INPUTS // group_size
    codes = torch.randint(0, 1 << bits, (OUTPUTS, INPUTS), generator=generator)
    # Powers of two: the packer divides weights by scales, and must find the codes that we meant.
    scales = 2.0 ** torch.randint(-9, -5, (OUTPUTS, groups), generator=generator)
    zeros = torch.full((OUTPUTS, groups), 1 << bits - 1)
    if not symmetric:
        zeros = torch.randint(1, 1 << bits, (OUTPUTS, groups), generator=generator)
    which = torch.arange(INPUTS) // group_size
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = scales[:, which] * (codes - zeros[:, which])
    packed = QuantLinear(bits, GROUP_SIZES[bits], INPUTS, OUTPUTS, bias=False, weight_dtype=torch.float16)
    packed.pack(linear, scales.clone(), zeros.float(), None)
    given = {"codes": codes.byte(), "scale": scales.half(), "zero": zeros.byte()}
    made = {name: tensor.contiguous() for name, tensor in packed.state_dict().items()}
    made["scales"] = made["scales"].half()  # pack() leaves them in the weight's dtype
    return {**{f"in.{name}": tensor for name, tensor in given.items()},
            **{f"out.{name}": tensor for name, tensor in made.items()}}  # fmt: skip


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    for bits in GROUP_SIZES:
        save_file(golden(bits, symmetric=False), directory / f"autogptq_{bits}bit_asym.safetensors")
    save_file(golden(4, symmetric=True), directory / "autogptq_4bit_sym.safetensors")


main()
