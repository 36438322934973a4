"""Every kernel against its op's torch version and float64, over odd shapes: on the GPU if there is one, and in
Triton's interpreter, which is this file run as a script. Each is compiled for two GPUs that need not be there.

The interpreter computes bfloat16 wrongly and says nothing, so bfloat16 is compared on a GPU only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.kernels import gpu
from compress.kernels.op import Op, force, ops

FILES = {path.stem for path in Path(gpu.__file__).parent.glob("*.py")} - {"__init__"}
ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
CAPABILITIES = (80, 90)
ROUNDED = 2e-6
"""Of the whole: tensor cores truncate as they add up, parts of 256 tokens at a time. An H200 comes to 9e-7."""


@dataclass(frozen=True)
class Case:
    """What an op is called with, a fresh copy each time; what it then leaves behind; and that in float64."""

    name: str
    arguments: Callable[[], tuple[Tensor, ...]]
    result: Callable[[tuple[Tensor, ...]], Tensor]
    truth: Tensor


def hessian_cases(device: torch.device) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    on_gpu = device.type == "cuda"
    shapes = [(1, 1), (3, 5), (257, 130), (100, 64), (520, 48)] + on_gpu * [(4097, 576), (300, 2064), (1000, 4096)]
    for tokens, columns in shapes:
        for dtype in (torch.float16, *on_gpu * [torch.bfloat16]):
            x = (torch.randn(tokens, columns, generator=generator) * 3).to(device, dtype)
            total = torch.randn(columns, columns, generator=generator).to(device)
            yield Case(
                f"[{tokens}, {columns}] {dtype}",
                lambda total=total, x=x: (total.clone(), x),
                lambda arguments: arguments[0].triu(),
                (total.double() + x.double().T @ x.double()).triu(),
            )


CASES: dict[str, Callable[[torch.device], Iterator[Case]]] = {"add_hessian": hessian_cases}


def hessian_builds() -> Iterator[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    from compress.kernels.gpu import add_hessian as module

    for name in ("*fp16", "*bf16"):
        for columns in (577, 576, 4096):
            block = module.tile(columns)
            signature = {"total": "*fp32", "inputs": name, "tokens": "i32", "columns": "i32", "stride": "i32"}
            even = ("total", "inputs", *(() if columns % 16 else ("columns", "stride")))
            build = module.specialised(block), module.launched(block)
            yield module.upper_products, dict.fromkeys(even), signature, *build  # type: ignore[misc]


BUILDS = {"add_hessian": hessian_builds}


def compare(op: Op[..., object], device: torch.device) -> None:
    """The kernel takes every case, and errs no more than torch's float32, what tensor cores truncate aside."""
    for case in CASES[op.name](device):
        arguments, plain = case.arguments(), case.arguments()
        assert op.kernel is not None and op.kernel.takes(*arguments)
        op.kernel.run(*arguments)
        with force("reference"):
            op(*plain)
        error, usual = (float((case.result(x) - case.truth).norm()) for x in (arguments, plain))
        size = float(case.truth.norm())
        assert error <= 2 * usual + ROUNDED * size, (
            f"{op.name} {case.name}: {error / size:.2e}, torch {usual / size:.2e}"
        )


def test_every_kernel_has_an_op_cases_and_builds():
    assert {op.name for op in ops()} >= FILES
    assert FILES == set(CASES) == set(BUILDS)


@pytest.mark.parametrize("op", [op for op in ops() if op.name in FILES], ids=lambda op: op.name)
@pytest.mark.parametrize("device", [ON_GPU])
def test_kernels_compute_on_a_gpu_what_torch_computes(op, device):
    compare(op, torch.device(device))


def test_kernels_compute_in_the_interpreter_what_torch_computes(environment):
    pytest.importorskip("triton", minversion="3.7", reason="before, no loop may end where the arguments say")
    interpreted = {**environment, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=interpreted, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(FILES)


def test_what_the_hessian_kernel_cannot_read_it_does_not_take():
    pytest.importorskip("triton")
    from compress.kernels.gpu.add_hessian import takes

    total, x = torch.zeros(4, 4), torch.zeros(6, 8)
    half = x.bfloat16()
    assert takes(total, half[:, :4]) and takes(total, x[:, :4].half())
    assert not takes(total, x[:, :4])
    assert not takes(total, half[:, ::2])
    assert not takes(total, half[:0, :4])
    assert not takes(total.double(), half[:, :4])
    assert not takes(torch.zeros(4, 8)[:, ::2], half[:, :4])


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_without_spilling_registers(name, capability, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, even, signature, constants, options in BUILDS[name]():
        signature |= dict.fromkeys(constants, "constexpr")
        at = {argument: place for place, argument in enumerate(signature)}
        source = ASTSource(
            kernel,
            signature=signature,
            constexprs={(at[argument],): value for argument, value in constants.items()},
            attrs={(at[argument],): [["tt.divisibility", 16]] for argument in even},
        )
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        assert re.findall(r"STACK:(\d+)", usage) == ["0"], f"{name} {constants}: {usage}"


if __name__ == "__main__":
    for each in ops():
        if each.name in FILES:
            compare(each, torch.device("cpu"))
            print(each.name)
