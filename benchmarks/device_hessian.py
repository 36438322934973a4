"""XᵀX: the kernel beside plain torch and the floor, in seconds and in error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from device_report import Bench
from torch import Tensor

from compress.kernels.measure.hessian import add_hessian
from compress.kernels.op import force

Adds = Callable[[Tensor, Tensor], None]


def hessians(bench: Bench) -> Iterator[str]:
    """A row for each shape, type and way. The floor is half the triangle at what a matrix product of the type reaches.

    Errors are those of XᵀX against float64, as parts of it: of the whole matrix, and of its diagonal with its sign,
    for a sum that truncates comes out too small.
    """
    yield "| columns | tokens | inputs | by | ms | TFLOP/s | of the floor | error | of the diagonal |"
    yield "|---|---|---|---|---|---|---|---|---|"
    shapes = [(96, 64)] if bench.small else [(576, 8192), (4096, 8192), (14336, 8192)]
    for columns, tokens in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            x = _inputs(columns, tokens, bench.device).to(dtype)
            truth = x.double().T @ x.double()
            for name, add in ways(dtype, bench):
                yield _row(bench, name, add, x, truth)
    yield f"\nServed: {dict(add_hessian.counts)}"


def ways(dtype: torch.dtype, bench: Bench) -> Iterator[tuple[str, Adds]]:
    yield "torch", _plain
    if bench.device.type != "cuda":
        return
    yield "the op", add_hessian
    if dtype == torch.bfloat16:
        for part in (256, 1024):
            yield f"kernel, parts of {part}", partial(_kernel, {"PART": part})


def _plain(total: Tensor, inputs: Tensor) -> None:
    with force("reference"):
        add_hessian(total, inputs)


def _kernel(constants: dict[str, Any], total: Tensor, inputs: Tensor) -> None:
    from compress.kernels.gpu import add_hessian as module

    columns = inputs.shape[1]
    block = module.tile(columns)
    blocks = -(-columns // block)
    chosen = {**module.specialised(block), **constants, **module.launched(block)}
    grid = (blocks * (blocks + 1) // 2,)
    module.upper_products[grid](total, inputs, len(inputs), columns, inputs.stride(0), **chosen)


def _row(bench: Bench, name: str, add: Adds, x: Tensor, truth: Tensor) -> str:
    tokens, columns = x.shape
    total = torch.zeros(columns, columns, device=x.device)
    add(total, x)
    whole = float((total.triu().double() - truth.triu()).norm() / truth.triu().norm())
    diagonal = float((total.diagonal().double() / truth.diagonal() - 1).mean())
    seconds = bench.seconds(lambda: add(total, x))
    work = tokens * columns * (columns + 1)
    floor = work / bench.ceilings[str(x.dtype).removeprefix("torch.")]
    kind = str(x.dtype).removeprefix("torch.")
    return (
        f"| {columns} | {tokens} | {kind} | {name} | {1e3 * seconds:.2f} | {work / seconds / 1e12:.1f} "
        f"| {100 * floor / seconds:.0f} % | {whole:.1e} | {diagonal:+.1e} |"
    )


def _inputs(columns: int, tokens: int, device: torch.device) -> Tensor:
    """Channels of very different size, some with a mean: as activations are."""
    generator = torch.Generator(device).manual_seed(0)
    spread = torch.randn(columns, device=device, generator=generator).exp()
    centre = torch.randn(columns, device=device, generator=generator) * spread
    return torch.randn(tokens, columns, device=device, generator=generator) * spread + centre
