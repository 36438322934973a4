"""Kernels that round the columns of a block: what they are compared on, and how they are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_case import Build, Case
from torch import Tensor

from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.op import Op
from compress.kernels.qtensor import NumberFormat


def block_cases(op: Op[..., None], again: bool, device: torch.device) -> Iterator[Case]:
    """Blocks of GPTQ: each kind of zero point, a mask, a part of a block; what is left behind is one matrix.

    `again`: they were rounded before, with errors of some size.
    """
    generator = torch.Generator().manual_seed(0)
    on_gpu = device.type == "cuda"
    formats: list[tuple[int, int, NumberFormat]] = [
        (40, 64, IntFormat(4, 32)),
        (17, 50, IntFormat(3, -1, "integer")),
        (16, 33, IntFormat(8, -1, "real")),
        (16, 64, KAffineFormat("q4_k")),
        *on_gpu * [(4096, 64, IntFormat(4, 64)), (1000, 128, IntFormat(2, -1, "integer", "bfloat16"))],
    ]
    for rows, columns, number_format in formats:
        weight = torch.randn(rows, max(columns, 256) if number_format.name == "q4_k" else columns, generator=generator)
        params = number_format.fit(weight)
        spread = number_format.expand(params, tuple(weight.shape))
        spread = {name: value[:, :columns].T.contiguous().to(device) for name, value in spread.items()}
        source = weight[:, :columns].T.contiguous().to(device)
        feed = torch.randn(columns, columns + 6, generator=generator)[:, :columns].to(device).tril() / 8
        moved = torch.randn(columns, rows, generator=generator).to(device) / 16
        kept = (torch.rand(columns, rows, generator=generator) > 0.5).to(device) if columns == 50 else None
        made = partial(_arguments, (source, moved, feed, number_format, spread, kept), again)
        exact = made(torch.float64)
        op.reference(*exact)
        yield Case(f"{rows} rows of {number_format.name}", made, _left, _left(exact))


def _arguments(these: tuple[Any, ...], again: bool, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    source, moved, feed, number_format, spread, kept = these
    codes = torch.full(source.shape, 255, dtype=torch.uint8, device=source.device)
    source, moved, feed = (each.to(dtype, copy=True) for each in (source, moved, feed))
    matrices = (source, moved, moved.flip(0)) if again else (source, source + moved, torch.empty_like(source))
    return (*matrices, codes, feed, number_format, {name: value.to(dtype) for name, value in spread.items()}, kept)


def _left(arguments: tuple[Any, ...], _: Any = None) -> Tensor:
    """What was rounded, or owed; errors and codes."""
    return torch.cat([each.double() for each in arguments[1:4]])


def block_builds(name: str, _: int) -> Iterator[Build]:
    """Of the kernel of that name: symmetric codes, zero points and a mask, minima."""
    from compress.kernels.gpu import revisit_block, visit_block

    kernel = {"visit_block": visit_block.visit, "revisit_block": revisit_block.revisit}[name]
    second = {"visit_block": "target", "revisit_block": "owed"}[name]
    lines = ("source", second, "errors", "codes", "feed", "scale", "zero", "minimum", "kept")
    for absent, columns in [({"zero", "minimum", "kept"}, 64), ({"minimum"}, 128), ({"zero", "kept"}, 64)]:
        types = {"codes": "*u8", "kept": "*u8"}
        signature = {name: "constexpr" if name in absent else types.get(name, "*fp32") for name in lines}
        signature |= dict.fromkeys(("columns", "rows", "stride"), "i32")
        constants = dict.fromkeys(absent) | visit_block.specialised(columns, 16)
        even = {*lines, "rows", "stride"} - absent
        yield Build(kernel, signature, even, constants, visit_block.launched(), tensor_cores=False)
