"""Many inputs times codes, by each of our ways, beside the product with a matrix of 16 bits and peers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from device_codes import INT4, NF4, PEERS, Way, able, error_of, ours, plain, random_codes, timed
from device_report import Bench
from torch import Tensor
from torch.nn.functional import linear

from compress.kernels.product.multiply_codes import decode_codes, multiply_many
from compress.kernels.product.words import Words

SHAPES = [(4096, 14336), (28672, 4096), (4096, 4096)]
COUNTS = (128, 512, 1024, 2048)


def prefill(bench: Bench) -> Iterator[str]:
    """A row for each shape, count of inputs and way; the rate in bf16 is what 100 % is. Errors as of few inputs.

    Where one of ours overtakes another says which `multiply_codes` ought to choose.
    """
    yield "| weight | inputs | by | µs | ± | TFLOP/s | of bf16's rate | error |"
    yield "|---|---|---|---|---|---|---|---|"
    told: list[str] = []
    for rows, columns in [(64, 256)] if bench.small else SHAPES:
        made = able(bench, ways(bench, rows, columns), columns, told, 128)
        for count in (70, 130) if bench.small else COUNTS:
            x = torch.randn(count, columns, device=bench.device).to(torch.bfloat16)
            found = timed(bench, made, x)
            dense = statistics.median(found["bf16"])
            for way in made:
                middle = statistics.median(found[way.name])
                low, _, high = statistics.quantiles(found[way.name], n=4)
                yield (
                    f"| {rows}×{columns} | {count} | {way.name} | {1e6 * middle:.1f} | {1e6 * (high - low):.1f} "
                    f"| {2e-12 * rows * columns * count / middle:.0f} | {100 * dense / middle:.0f} % "
                    f"| {error_of(way, x):.1e} |"
                )
    yield from dict.fromkeys(told)


def ways(bench: Bench, rows: int, columns: int) -> Iterator[tuple[str, Callable[[], Way]]]:
    """By name, made when called."""
    int4 = random_codes(INT4, rows, columns).to(bench.device)
    dense = int4.dequantize().bfloat16()
    yield "bf16", partial(plain, dense)
    yield "codes", partial(ours, "codes, int4 g128", int4, multiply_many)
    yield "decoded", partial(ours, "decoded, then bf16", int4, decoded)
    yield "nf4", partial(ours, "codes, nf4 b64", random_codes(NF4, rows, columns).to(bench.device), multiply_many)
    if bench.device.type == "cuda":
        yield from ((name, partial(make, dense, int4)) for name, make in PEERS.items())


def decoded(inputs: Tensor, weight: Words) -> Tensor:
    """The weight written out, and a dense product with it."""
    return linear(inputs, decode_codes(weight, inputs.dtype))
