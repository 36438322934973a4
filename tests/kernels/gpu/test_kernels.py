"""Every kernel against its op's torch version and float64, over odd shapes: on the GPU if there is one, and in
Triton's interpreter, which is this file run as a script. Each is compiled for two GPUs that need not be there.

The interpreter computes bfloat16 wrongly and says nothing, so bfloat16 is compared on a GPU only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from coded_attention import attention_builds, attention_cases
from coded_blocks import block_builds, block_cases
from coded_experts import expert_builds, expert_cases
from coded_products import decoded_builds, decoded_cases, few_builds, few_cases, many_builds, many_cases
from gpu_case import Build, Case
from torch.utils._python_dispatch import TorchDispatchMode

from compress.kernels import gpu
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.op import Op, force, ops
from compress.kernels.solve.gptq import visit_block
from compress.kernels.solve.tune import revisit_block

aten = torch.ops.aten
FILES = {path.stem for path in Path(gpu.__file__).parent.glob("*.py")} - {"__init__"}
ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async"}
"""What uses them in PTX, by the capability of a GPU."""
SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory that a block may have; a kernel that asks for more does not start."""
AWAITED = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
ROUNDED = 2e-6
"""Of the whole: tensor cores truncate as they add up, parts of 256 tokens at a time. An H200 comes to 9e-7."""


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
                lambda arguments, _: arguments[0].triu(),
                (total.double() + x.double().T @ x.double()).triu(),
            )


CASES: dict[str, Callable[[torch.device], Iterator[Case]]] = {
    "add_hessian": hessian_cases,
    "attend_codes": attention_cases,
    "decode_codes": decoded_cases,
    "multiply_experts": expert_cases,
    "multiply_few": few_cases,
    "multiply_many": many_cases,
    "revisit_block": partial(block_cases, revisit_block, True),
    "visit_block": partial(block_cases, visit_block, False),
}


def hessian_builds(_: int) -> Iterator[Build]:
    from compress.kernels.gpu import add_hessian as module

    for name, columns in (("*fp16", 577), ("*bf16", 577), ("*bf16", 576), ("*bf16", 4096)):
        block = module.tile(columns)
        signature = {"total": "*fp32", "inputs": name, "tokens": "i32", "columns": "i32", "stride": "i32"}
        even = {"total", "inputs", *(() if columns % 16 else ("columns", "stride"))}
        yield Build(module.upper_products, signature, even, module.specialised(block), module.launched(block))


BUILDS: dict[str, Callable[[int], Iterator[Build]]] = {
    "add_hessian": hessian_builds,
    "attend_codes": attention_builds,
    "decode_codes": decoded_builds,
    "multiply_experts": expert_builds,
    "multiply_few": few_builds,
    "multiply_many": many_builds,
    "revisit_block": partial(block_builds, "revisit_block"),
    "visit_block": partial(block_builds, "visit_block"),
}


def compare(op: Op[..., object], device: torch.device) -> None:
    """The kernel takes every case, and errs no more than plain torch, what tensor cores truncate aside.

    It writes all that it gives (memory that it is handed holds NaN), and gives the same bytes again.
    """
    for case in CASES[op.name](device):
        arguments, again, plain = (case.arguments() for _ in range(3))
        assert op.kernel is not None and op.kernel.takes(*arguments)
        with poisoned():
            found, repeated = (case.result(given, unawaited(op.kernel.run, given)) for given in (arguments, again))
        assert torch.equal(found, repeated), f"{op.name} {case.name}: differs"
        with force("reference"):
            expected = case.result(plain, op(*plain))
        error, usual = (float((each - case.truth).norm()) for each in (found, expected))
        size = float(case.truth.norm())
        assert error <= 2 * usual + ROUNDED * size, (
            f"{op.name} {case.name}: {error / size:.2e}, torch {usual / size:.2e}"
        )


def unawaited(run: Callable[..., object], arguments: tuple[Any, ...]) -> object:
    """What it gives, without having asked for a value, for which a GPU is waited for: so a CUDA graph can be made."""
    with Unawaited():
        return run(*arguments)


class Unawaited(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in AWAITED, f"{func} waits for the GPU"
        return func(*args, **(kwargs or {}))


@contextmanager
def poisoned() -> Iterator[None]:
    """Within, memory that torch hands out unwritten holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(1).isnan())
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_every_kernel_has_an_op_cases_and_builds():
    assert {op.name for op in ops()} >= FILES
    assert FILES == set(CASES) == set(BUILDS)


@pytest.mark.parametrize("op", [op for op in ops() if op.name in FILES], ids=lambda op: op.name)
@pytest.mark.parametrize("device", [ON_GPU])
def test_kernels_compute_on_a_gpu_what_torch_computes(op, device):
    compare(op, torch.device(device))


def test_kernels_compute_in_the_interpreter_what_torch_computes(environment):
    pytest.importorskip("triton", minversion="3.7", reason="before, no loop may end where the arguments say")
    interpreted = {**environment, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
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


@pytest.mark.parametrize("name", ["visit_block", "revisit_block"])
def test_what_the_kernels_of_blocks_cannot_round_they_do_not_take(name):
    pytest.importorskip("triton")
    from compress.kernels.gpu import revisit_block, visit_block

    takes = {"visit_block": visit_block, "revisit_block": revisit_block}[name].takes
    arguments = next(CASES[name](torch.device("cpu"))).arguments()
    source, target, errors, codes, feed, number_format, spread, kept = arguments
    assert takes(*arguments)
    assert not takes(source, target, errors, codes, feed, CodebookFormat("nf4", 64), spread, kept)
    assert not takes(source.T.contiguous().T, target, errors, codes, feed, number_format, spread, kept)
    assert not takes(source, target, errors, codes, feed.T, number_format, spread, kept)
    assert not takes(source.double(), target, errors, codes, feed, number_format, spread, kept)
    assert not takes(source.repeat(3, 1), target, errors, codes, feed, number_format, spread, kept)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("capability", TENSOR_CORES)
def test_kernels_compile_without_spilling_registers(name, capability, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for build in BUILDS[name](capability):
        signature = build.signature | dict.fromkeys(build.constants, "constexpr")
        at = {argument: place for place, argument in enumerate(signature)}
        assert list(signature) == build.kernel.arg_names
        source = ASTSource(
            build.kernel,
            signature=signature,
            constexprs={(at[argument],): value for argument, value in build.constants.items()},
            attrs={(at[argument],): [["tt.divisibility", 16]] for argument in build.even},
        )
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=build.options)
        assert (TENSOR_CORES[capability] in built.asm["ptx"]) == build.tensor_cores
        assert built.metadata.shared <= SHARED[capability], f"{name} {build.constants}"
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
        assert re.findall(r"STACK:(\d+)", usage) == ["0"], f"{name} {build.constants}: {usage}"


if __name__ == "__main__":
    for each in ops():
        if each.name in FILES:
            compare(each, torch.device("cpu"))
            print(each.name)
