"""The products of a layer's experts: all in one launch, one launch an expert, and torch's grouped product in bf16."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from device_codes import INT4, Way, able, random_codes, timed
from device_report import Bench
from torch import Tensor
from torch.nn import functional

from compress.kernels.product.multiply_codes import multiply_codes
from compress.kernels.product.multiply_experts import experts_product, multiply_experts
from compress.kernels.product.stack import Stack, stacked
from compress.kernels.product.words import words_of

LAYERS = {"30B-A3B": (128, 8, 1536, 2048), "8x7B": (8, 2, 28672, 4096)}
"""Experts, those of a token, rows and columns of the first product: Qwen3's and Mixtral's."""
TOKENS = (1, 16, 256, 2048)
_DISTINCT, _ROUTINGS = 4, 8
"""Weights that differ, laid down again and again; ways of tokens to experts that take turns, so that no cache helps."""


class Routing(NamedTuple):
    """How many inputs each expert has, and before which input its own end."""

    counts: list[int]
    ends: Tensor


def experts(bench: Bench) -> Iterator[str]:
    """A row for each layer, count of tokens and way. The floor is the bytes of the experts that are asked, at the rate
    of a copy; errors are relative, against float64.
    """
    yield "| layer | tokens | by | µs | ± | of the floor | TFLOP/s | error |"
    yield "|---|---|---|---|---|---|---|---|"
    told: list[str] = []
    for name, sizes in {"small": (4, 2, 64, 256)}.items() if bench.small else LAYERS.items():
        count, each, rows, columns = sizes
        stack = random_stack(count, rows, columns, bench.device)
        dense = torch.stack([stack[number].values().bfloat16() for number in range(count)])
        for tokens in (1, 40) if bench.small else TOKENS:
            routings = [routing(count, each, tokens, bench.device, seed) for seed in range(_ROUTINGS)]
            x = torch.randn(tokens * each, columns, device=bench.device).bfloat16()
            made = able(bench, ways(stack, dense, routings), columns, told, len(x))
            found = timed(bench, made, x)
            for way in made:
                yield _row(bench, f"{name} | {tokens}", x, way, found[way.name], truth(x, stack, routings[0]))
    yield from dict.fromkeys(told)
    yield f"\nServed: {dict(multiply_experts.counts)}"


def random_stack(count: int, rows: int, columns: int, device: torch.device) -> Stack:
    """Weights of int4 in groups of 128."""
    few = [words_of(random_codes(INT4, rows, columns).to(device)) for _ in range(min(_DISTINCT, count))]
    stack = stacked([words for number in range(count) if (words := few[number % len(few)]) is not None])
    assert stack is not None
    return stack


def routing(count: int, each: int, tokens: int, device: torch.device, seed: int) -> Routing:
    """Each token to `each` of `count` experts, evenly by chance."""
    chance = torch.rand(tokens, count, generator=torch.Generator().manual_seed(seed))
    counts = chance.topk(each).indices.flatten().bincount(minlength=count)
    return Routing(counts.tolist(), counts.cumsum(0).int().to(device))


def ways(stack: Stack, dense: Tensor, routings: list[Routing]) -> Iterator[tuple[str, Callable[[], Way]]]:
    """By name, made when called."""
    asked = statistics.mean(sum(map(bool, routing.counts)) for routing in routings)
    coded, plain = (asked * dense[0].numel() * width for width in (4.125 / 8, 2))
    yield "ours", lambda: Way("one launch, int4 g128", [partial(_at_once, stack, r) for r in routings], coded)
    yield "single", lambda: Way("a launch an expert", [partial(_one_by_one, stack, r) for r in routings], coded)
    yield "bf16", lambda: Way("torch's grouped product, bf16", [partial(_grouped, dense, r) for r in routings], plain)


def _at_once(stack: Stack, routing: Routing, x: Tensor) -> Tensor:
    return experts_product(x, stack, routing.ends)


def _one_by_one(stack: Stack, routing: Routing, x: Tensor) -> Tensor:
    parts = enumerate(x.split(routing.counts))
    return torch.cat([multiply_codes(part, stack[number]) for number, part in parts if len(part)])


def _grouped(dense: Tensor, routing: Routing, x: Tensor) -> Tensor:
    found: Tensor = functional.grouped_mm(x, dense.mT, offs=routing.ends)
    return found


def truth(x: Tensor, stack: Stack, routing: Routing) -> Tensor:
    """In float64, of the weights as codes have them."""
    parts = enumerate(x.double().split(routing.counts))
    return torch.cat([part @ stack[number].values().double().T for number, part in parts if len(part)])


def _row(bench: Bench, what: str, x: Tensor, way: Way, seconds: list[float], truth: Tensor) -> str:
    middle = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4)
    error = float((way.calls[0](x).double() - truth).norm() / truth.norm())
    rate = 2 * truth.numel() * x.shape[1] / middle
    return (
        f"| {what} | {way.name} | {1e6 * middle:.1f} | {1e6 * (high - low):.1f} "
        f"| {100 * way.nbytes / bench.ceilings['copy'] / middle:.0f} % | {rate / 1e12:.1f} | {error:.1e} |"
    )
