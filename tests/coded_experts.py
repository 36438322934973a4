"""The kernel for all experts at once: what it is compared on, and how it is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from coded_products import product_build
from gpu_case import Build, Case
from torch import Tensor

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.product.stack import Stack, stacked
from compress.kernels.product.words import words_of
from compress.kernels.qtensor import NumberFormat


def coded_experts(number_format: NumberFormat, count: int, rows: int, columns: int) -> tuple[Tensor, Stack]:
    """Random weights [count, rows, columns] fp32 as codes have them, and in words."""
    generator = torch.Generator().manual_seed(rows)
    weights = [number_format.search(torch.randn(rows, columns, generator=generator)) for _ in range(count)]
    words = [each for weight in weights if (each := words_of(weight)) is not None]
    stack = stacked(words)
    assert stack is not None and stack.count == count
    return torch.stack([weight.dequantize() for weight in weights]), stack


def to(stack: Stack, device: torch.device) -> Stack:
    tensors = {name: value.to(device) for name, value in vars(stack.words).items() if isinstance(value, Tensor)}
    return replace(stack, words=replace(stack.words, **tensors))


def expert_cases(device: torch.device) -> Iterator[Case]:
    """Experts without a token, with several blocks, and tokens that are nobody's; few tokens each, and many."""
    on_gpu = device.type == "cuda"
    shapes: list[tuple[list[int], int, int, int, NumberFormat]] = [
        ([0, 1, 0, 2, 17], 3, 70, 160, IntFormat(4, 32)),
        ([1, 0, 1], 0, 65, 1024, IntFormat(3, 256, "integer")),
        ([0, 3], 0, 64, 512, KScaledFormat("q6_k")),
        ([2, 0, 1], 1, 16, 96, FloatFormat()),
        ([5, 1], 0, 16, 384, CodebookFormat("nf4", 64)),
        ([0, 131, 3], 2, 65, 352, IntFormat(4, 32)),
        ([70, 66], 0, 131, 256, KAffineFormat("q5_k")),
        *on_gpu * [([tokens] * 8, 0, 1536, 2048, IntFormat(4, 128)) for tokens in (1, 30, 500)],
        *on_gpu * [([0] * 120 + [1] * 8, 0, 1536, 2048, KAffineFormat("q4_k"))],
    ]  # fmt: skip
    for counts, nobodys, rows, columns, number_format in shapes:
        weights, stack = coded_experts(number_format, len(counts), rows, columns)
        stack, ends = to(stack, device), torch.tensor(counts).cumsum(0).int().to(device)
        generator = torch.Generator().manual_seed(0)
        tokens = sum(counts)
        for dtype in (torch.float16, *on_gpu * [torch.bfloat16]):
            x = torch.randn(tokens + nobodys, columns + 8, generator=generator).to(dtype)[:, :columns]
            parts = zip(x.double().split([*counts, nobodys]), weights.double())
            truth = torch.cat([part @ weight.T for part, weight in parts])
            given = (x.to(device), stack, ends)
            yield Case(
                f"{counts} · {number_format.name} [{rows}, {columns}] {dtype}",
                lambda given=given: given,
                lambda _, found, tokens=tokens: found[:tokens],
                truth.to(device),
            )


def expert_builds(capability: int) -> Iterator[Build]:
    """Few tokens and many, of each kind of codes; 128 experts."""
    from compress.kernels.gpu import multiply_experts as module

    for tokens, number_format in [
        (8, IntFormat(4, 128)),
        (128 * 64, IntFormat(4, 64, "integer")),
        (8, KScaledFormat("q6_k")),
        (128 * 512, IntFormat(4, 128)),
        (128 * 512, CodebookFormat("nf4", 64)),
    ]:
        _, stack = coded_experts(number_format, 1, 16, 256)
        stack = replace(stack, count=128)
        inputs = torch.zeros(1, 256, dtype=torch.bfloat16)
        constants, options = module.compiled(tokens, stack, inputs.dtype, divmod(capability, 10))
        table, sums = module.prepared(inputs, stack.words, constants["IS_FEW"])
        more = {"inputs": inputs, "table": table, "sums": sums, "result": inputs, "ends": torch.zeros(0).int()}
        yield replace(product_build(module.products, stack.words, more, constants), options=options)
