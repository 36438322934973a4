"""One token's attention over keys and values in 8 bits: the kernel beside decoding them first, and beside 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from device_report import Bench
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from compress.kernels.numbers.activations import Grid, grid_codes, grid_scale
from compress.kernels.op import force
from compress.kernels.product.attend_codes import Coded, attend_codes

SIZES = [(1, 32768), (16, 4096), (1, 4096)]
"""Sequences and tokens of each."""
HEADS, KEPT, WIDTH = 32, 8, 128


def attention(bench: Bench) -> Iterator[str]:
    """As in an 8B Llama, 32 heads over 8 of 128. The floor is the bytes of keys and values at the rate of a copy."""
    yield "| sequences × tokens | cache | by | µs | of the floor | error |"
    yield "|---|---|---|---|---|---|"
    for batch, tokens in [(1, 70)] if bench.small else SIZES:
        states = torch.randn(2, batch, KEPT, tokens, WIDTH, device=bench.device)
        query = torch.randn(batch, HEADS, WIDTH, device=bench.device).to(torch.bfloat16)
        grids: tuple[Grid, ...] = ("int8", "fp8")
        for grid in grids:
            keys, values = (coded(part, grid) for part in states)
            call = partial(attend_codes, query, keys, values, WIDTH**-0.5)
            truth = _plain(query.double(), *(each.values().double() for each in (keys, values)))
            yield _row(bench, f"{batch} × {tokens} | {grid}", "the kernel", call, truth, 2 * keys.codes.numel())
            with force("reference"):
                yield _row(bench, f"{batch} × {tokens} | {grid}", "decoded", call, truth, 2 * keys.codes.numel())
        halves = [part.to(torch.bfloat16) for part in states]
        call, truth = partial(_plain, query, *halves), _plain(query.double(), *(part.double() for part in halves))
        yield _row(bench, f"{batch} × {tokens} | bf16", "torch", call, truth, 4 * halves[0].numel())
    yield f"\nServed: {dict(attend_codes.counts)}"


def coded(states: Tensor, grid: Grid) -> Coded:
    """With a scale for each head, as the artifact's."""
    scale = grid_scale(states.abs().amax((0, 2, 3), keepdim=True), grid)
    return Coded(grid_codes(states, scale, grid), scale[..., 0].expand(states.shape[:3]), grid)


def _plain(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return scaled_dot_product_attention(query.unsqueeze(2), keys, values, enable_gqa=True).squeeze(2)


def _row(bench: Bench, what: str, by: str, call: Callable[[], Tensor], truth: Tensor, nbytes: float) -> str:
    try:
        error = float((call().double() - truth).norm() / truth.norm())
        seconds = _seconds(bench, call)
    except Exception as failure:  # noqa: BLE001 - told, and the next row follows
        return f"| {what} | {by} | failed: {type(failure).__name__}: {str(failure)[:80]} | | |"
    floor = nbytes / (bench.ceilings["copy"] * seconds)
    return f"| {what} | {by} | {1e6 * seconds:.1f} | {100 * floor:.0f} % | {error:.1e} |"


def _seconds(bench: Bench, call: Callable[[], Tensor], repeats: int = 20) -> float:
    """Of one call among many in a CUDA graph, where there is one."""
    if bench.device.type != "cuda":
        return bench.seconds(call, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return bench.seconds(graph.replay) / repeats
