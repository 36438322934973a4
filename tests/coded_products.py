"""Kernels that read codes in words: what they are compared on, and how they are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_case import FUSED, Build, Case, pointer
from torch import Tensor

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.product.words import Words, words_of
from compress.kernels.qtensor import NumberFormat, QTensor


def few_cases(device: torch.device) -> Iterator[Case]:
    """A case for each way that codes lie in words, or that scales and minima go with them; rows and strides are odd."""
    on_gpu = device.type == "cuda"
    yield from product_cases(device, [
        (1, 70, 160, IntFormat(4, 32)),
        (2, 64, 256, IntFormat(3, -1, "integer")),
        (17, 31, 352, IntFormat(8, -1)),
        (3, 65, 1024, IntFormat(4, 256, "real")),
        (2, 16, 384, CodebookFormat("nf4", 64)),
        (2, 16, 96, FloatFormat()),
        (3, 65, 512, KScaledFormat("q6_k")),
        (2, 16, 320, IntFormat(4, 16, "integer")),
        (2, 16, 96, Float4Format("nvfp4")),
        *on_gpu * [(count, 4096, 14336, IntFormat(4, 128)) for count in (1, 8, 16, 33, 64)],
        *on_gpu * [(1, 576, 1536, IntFormat(bits, 64, "integer")) for bits in (2, 5, 6, 7)],
        *on_gpu * [(5, 1000, 2304, KAffineFormat("q4_k"))],
    ])  # fmt: skip


def many_cases(device: torch.device) -> Iterator[Case]:
    """Blocks of tokens and of rows that are not full, columns that are split, and those that end within a chunk."""
    on_gpu = device.type == "cuda"
    yield from product_cases(device, [
        (130, 131, 352, IntFormat(4, 32)),
        (65, 16, 2304, IntFormat(3, -1, "integer")),
        (2, 65, 512, KAffineFormat("q5_k")),
        (70, 16, 96, CodebookFormat("nf4", 32)),
        (3, 16, 256, FloatFormat()),
        (20, 65, 256, KScaledFormat("q6_k")),
        *on_gpu * [(count, 4096, 14336, IntFormat(4, 128)) for count in (65, 128, 512, 1000)],
        *on_gpu * [(200, 576, 1536, IntFormat(bits, 64, "integer")) for bits in (2, 5, 6, 7, 8)],
        *on_gpu * [(300, 1000, 2304, KAffineFormat("q4_k")), (100, 4096, 4096, CodebookFormat("nf4", 64))],
    ])  # fmt: skip


def product_cases(device: torch.device, shapes: list[tuple[int, int, int, NumberFormat]]) -> Iterator[Case]:
    """Products of tokens, of which each has some other numbers behind it."""
    generator = torch.Generator().manual_seed(0)
    on_gpu = device.type == "cuda"
    for tokens, rows, columns, number_format in shapes:
        weight, words = coded(number_format, rows, columns, device)
        for dtype in (torch.float16, *on_gpu * [torch.bfloat16]):
            x = torch.randn(tokens, columns + 8, generator=generator).to(device, dtype)[:, :columns]
            yield Case(
                f"[{tokens}, {columns}] · {number_format.name} [{rows}, {columns}] {dtype}",
                lambda x=x, words=words: (x, words),
                lambda _, found: found,
                x.double() @ weight.dequantize().double().T,
            )


def decoded_cases(device: torch.device) -> Iterator[Case]:
    """Rows and columns that end within a tile and a chunk; each type that products have."""
    on_gpu = device.type == "cuda"
    for rows, columns, number_format, dtype in [
        (65, 352, IntFormat(4, 32), torch.float16),
        (3, 256, IntFormat(8, -1, "real"), torch.float32),
        (65, 256, KAffineFormat("q2_k"), torch.float16),
        (64, 320, CodebookFormat("nf4", 64), torch.bfloat16 if on_gpu else torch.float16),
    ]:
        weight, words = coded(number_format, rows, columns, device)
        yield Case(
            f"{number_format.name} [{rows}, {columns}] {dtype}",
            lambda words=words, dtype=dtype: (words, dtype),
            lambda _, found: found,
            weight.dequantize().double(),
        )


def coded(number_format: NumberFormat, rows: int, columns: int, device: torch.device) -> tuple[QTensor, Words]:
    """A random weight, and in words."""
    generator = torch.Generator().manual_seed(rows)
    weight = number_format.search(torch.randn(rows, columns, generator=generator)).to(device)
    words = words_of(weight)
    assert words is not None
    return weight, words


def few_builds(_: int) -> Iterator[Build]:
    """Symmetric codes as they are met most; two planes, minima and many tokens; a table."""
    from compress.kernels.gpu import multiply_few as module

    for tokens, number_format, dtype in [
        (1, IntFormat(4, 128), torch.bfloat16),
        (64, IntFormat(3, 64, "integer"), torch.float16),
        (16, CodebookFormat("nf4", 64), torch.bfloat16),
        (1, KScaledFormat("q6_k"), torch.bfloat16),
        (64, Float4Format("nvfp4"), torch.bfloat16),
    ]:
        words = coded(number_format, 16, 256, torch.device("cpu"))[1]
        zeros = torch.empty(0, dtype=dtype)
        more = {
            "table": module.levels(words, dtype),
            "sums": module.sums_of(torch.zeros(1, 256), words),
            "result": torch.empty(0),
        }
        constants = module.specialised(tokens, words, dtype)
        yield product_build(module.products, words, {"inputs": zeros, **more}, constants)
    signature = {"parts": "*fp32", "result": "*bf16", "count": "i32"}
    yield Build(module.joined, signature, {*signature}, {"SPLITS": 8, "WIDTH": 1024}, FUSED, tensor_cores=False)


def many_builds(capability: int) -> Iterator[Build]:
    """As of few; the result may be parts of sums, or what the inputs are."""
    from compress.kernels.gpu import multiply_many as module

    for number_format, dtype, result in [
        (IntFormat(4, 128), torch.bfloat16, torch.bfloat16),
        (IntFormat(3, 64, "integer"), torch.float16, torch.float32),
        (CodebookFormat("nf4", 64), torch.bfloat16, torch.bfloat16),
        (KScaledFormat("q6_k"), torch.bfloat16, torch.bfloat16),
    ]:
        words = coded(number_format, 16, 256, torch.device("cpu"))[1]
        tensors = {"inputs": torch.empty(0, dtype=dtype), "table": module.levels(words)}
        constants = module.specialised(words, module.at_a_time(512, divmod(capability, 10)))
        build = product_build(module.products, words, tensors | {"result": torch.empty(0, dtype=result)}, constants)
        yield replace(build, options=module.launched())


def decoded_builds(_: int) -> Iterator[Build]:
    from compress.kernels.gpu import decode_codes as module

    words = coded(IntFormat(3, 64, "integer"), 16, 256, torch.device("cpu"))[1]
    tensors = {"table": words.table, "result": torch.empty(0, dtype=torch.bfloat16)}
    yield replace(product_build(module.decoded, words, tensors, module.specialised(words)), tensor_cores=False)


def product_build(kernel: Any, words: Words, more: dict[str, Tensor | None], constants: dict[str, Any]) -> Build:
    """A kernel with the tensors of `words` and `more`; all else of its arguments are sizes, or constants."""
    from compress.kernels.gpu import multiply_few as module

    tensors = {name: getattr(words, name) for name in ("low", "high", "scale", "minimum")} | more
    constants = {name: None for name, tensor in tensors.items() if tensor is None} | constants
    signature = {name: pointer(tensors[name]) if name in tensors else "i32" for name in kernel.arg_names}
    even = {*tensors, "rows", "columns", "stride", "group"} & {*signature} - constants.keys()
    return Build(kernel, signature, even, constants, module.launched(words))
