"""Products of fp32 matrices on units for bfloat16, where a processor has such and they pay.

Inputs are rounded to bfloat16; their products are exact, sums and results fp32. So XᵀX is that of the inputs as a
bfloat16 model has them: what is rounded is a thousandth of the damping. On an Intel Xeon with AMX linears of 256 inputs
and more take a third of the time, XᵀX half of it; attention takes longer, and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.kernels.effort import Effort
from compress.kernels.laps import least_seconds

_LEAST = 256
"""Columns from which on it pays."""
_FASTER = 1.5
"""So much faster must it be: what is gained is never in doubt, or the same machine would not give the same bytes."""
_SIDE = 512


def has_half() -> bool:
    """Whether this CPU has such units, AMX, and is let use them."""
    known = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return known and bool(torch.cpu.get_capabilities()["amx_bf16"])


@cache
def half_pays() -> bool:
    """Whether it pays on this CPU: if it has them, some hundredths of a second are spent to see."""
    if not has_half():
        return False
    side = torch.ones(_SIDE, _SIDE)
    plain = least_seconds(lambda: side @ side)
    with half_products():
        return least_seconds(lambda: side @ side) * _FASTER < plain


@contextmanager
def half_products(columns: int = _LEAST, wanted: bool = True) -> Iterator[None]:
    """Within, fp32 products on the CPU go so, if `wanted`, and if inputs have `columns` enough for it to pay."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if wanted and columns >= _LEAST:
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def halved_effort(effort: Effort, columns: int) -> Effort:
    """`effort` with its products as they go within `half_products(columns)`."""
    return replace(effort, flops=0.0, rounded=effort.flops) if columns >= _LEAST else effort


@contextmanager
def halved(linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Within, the products of these `linears` go so, and nothing else that runs between them."""
    taken = list(linears)
    for linear in taken:
        linear.__dict__["forward"] = partial(_forward, linear)
    try:
        yield
    finally:
        for linear in taken:
            del linear.__dict__["forward"]


def _forward(linear: nn.Linear, x: Tensor) -> Tensor:
    with half_products(linear.in_features):
        return functional.linear(x, linear.weight, linear.bias)
