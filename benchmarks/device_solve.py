"""GPTQ of one matrix, step by step: the columns in a kernel of their own beside the same as plain torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from device_report import Bench
from stopwatch import Place, Stopwatch, wait
from torch import Tensor

from compress.kernels.measure.hessian import add_hessian, fill_lower
from compress.kernels.numbers.int import IntFormat
from compress.kernels.op import force
from compress.kernels.solve import gptq as solve

PLACES: list[Place] = [("factor", solve, "_factorize"), ("columns", solve, "visit_block")]
SHAPES = [(4096, 4096), (4096, 14336)]


def solves(bench: Bench) -> Iterator[str]:
    """A row for each shape and way: seconds of each step, and tr(EHEᵀ), so that speed hides no loss."""
    yield "| weight | by | XᵀX | factor | columns | all else | s in all | tr(EHEᵀ) |"
    yield "|---|---|---|---|---|---|---|---|"
    for rows, columns in [(64, 128)] if bench.small else SHAPES:
        x = _inputs(columns, 256 if bench.small else 16384, bench.device)
        weight = torch.randn(rows, columns, device=bench.device) * 0.02
        for name in ("kernels", "plain torch"):
            if name == "plain torch" or bench.device.type == "cuda":
                yield _row(bench, name, weight, x)
    yield f"\nServed: {dict(solve.visit_block.counts)}"


def _row(bench: Bench, name: str, weight: Tensor, x: Tensor) -> str:
    with force("reference") if name == "plain torch" else nullcontext():
        _solved(bench, weight[:64], x)  # compiles
        watch = Stopwatch(bench.device)
        wait(bench.device)
        started = time.perf_counter()
        hessian = _hessian(bench, x)
        gathered = time.perf_counter() - started
        with watch.watching(PLACES):
            _, report = solve.gptq_solve(weight, hessian, IntFormat(4, 128))
            wait(bench.device)
        total = time.perf_counter() - started
    steps = [gathered, watch.seconds["factor"], watch.seconds["columns"]]
    shown = " | ".join(f"{each:.4f}" for each in [*steps, total - sum(steps), total])
    return f"| {weight.shape[0]}×{weight.shape[1]} | {name} | {shown} | {report.error:.6g} |"


def _solved(bench: Bench, weight: Tensor, x: Tensor) -> None:
    solve.gptq_solve(weight, _hessian(bench, x), IntFormat(4, 128))


def _hessian(bench: Bench, x: Tensor) -> Tensor:
    total = torch.zeros(x.shape[1], x.shape[1], device=bench.device)
    add_hessian(total, x)
    fill_lower(total)
    wait(bench.device)
    return total


def _inputs(columns: int, tokens: int, device: torch.device) -> Tensor:
    """Correlated channels of very different size."""
    generator = torch.Generator(device).manual_seed(0)
    spread = torch.randn(columns, device=device, generator=generator).exp()
    few = torch.randn(tokens, columns // 8, device=device, generator=generator)
    mixed = few @ torch.randn(columns // 8, columns, device=device, generator=generator)
    return ((mixed + torch.randn(tokens, columns, device=device, generator=generator)) * spread).bfloat16()
