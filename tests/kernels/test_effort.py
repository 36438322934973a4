"""Efforts add up, and those of kernels are what the kernels do: a counter of our own within torch is the judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compress.kernels.effort import Effort
from compress.kernels.measure.error import error_effort, relative_error
from compress.kernels.measure.hessian import add_cross, add_hessian, cross_effort, hessian_effort
from compress.kernels.numbers.int import IntFormat
from compress.kernels.solve.awq import clip_effort, scale_effort
from compress.kernels.solve.correct import correct_effort, corrected_target
from compress.kernels.solve.gptq import gptq_solve, solve_effort
from compress.kernels.solve.tune import tune, tune_effort

INT4 = IntFormat(4, 64)
SHAPE = (192, 512)


def inputs(tokens: int = 2048) -> torch.Tensor:
    return torch.randn(tokens, SHAPE[1], generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hessian() -> torch.Tensor:
    return inputs().T @ inputs()


class Products(TorchDispatchMode):
    """Counts the operations of products of matrices: not those of column loops, of factorizations, of systems."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func._schema.name.removeprefix("aten::").removesuffix("_")
        if name in ("mm", "bmm", "addmm"):
            self.flops += 2 * result.numel() * args[name == "addmm"].shape[-1]
        return result


def counted(work: Callable[[], object]) -> int:
    with Products() as products:
        work()
    return products.flops


def test_efforts_add_up_and_scale() -> None:
    once = Effort(1, 2, 3, 4) + Effort(flops=10)
    assert once == Effort(11, 2, 3, 4) and once * 2 == Effort(22, 4, 6, 8)
    assert Effort() + once == once


def test_statistics_and_errors_are_counted_to_the_product(hessian: torch.Tensor) -> None:
    x, weight, zeros = inputs(), torch.randn(SHAPE), torch.zeros_like(hessian)
    assert hessian_effort(2048, 512).flops == counted(lambda: add_hessian(zeros, x)) > 0
    assert cross_effort(2048, 512, 512).flops == counted(lambda: add_cross(zeros, x + 1, x)) > 0
    assert error_effort(SHAPE).flops == counted(lambda: relative_error(weight, weight + 1, hessian)) > 0


def test_solvers_are_counted_about(hessian: torch.Tensor) -> None:
    """Their efforts hold factorizations (columns³) and systems of equations (groups³) as well."""
    weight, cube, groups = torch.randn(SHAPE), SHAPE[1] ** 3, SHAPE[1] // 64
    quantized, _ = gptq_solve(weight, hessian, INT4)
    solved, tuned = (
        counted(lambda: gptq_solve(weight, hessian, INT4)),
        counted(lambda: tune(weight, hessian, quantized)),
    )
    assert solve_effort(SHAPE).flops - cube == pytest.approx(solved, rel=0.3)
    assert tune_effort(SHAPE, groups).flops - 8 * SHAPE[0] * groups**3 == pytest.approx(tuned, rel=0.3)
    corrected = counted(lambda: corrected_target(weight, hessian, hessian))
    assert correct_effort(SHAPE).flops - cube == 3 * corrected > 0  # two triangular systems take as much each


def test_columns_are_visited_one_by_one() -> None:
    few, many = solve_effort((64, 512)), solve_effort((64, 1024))
    assert many.calls == 2 * few.calls > 32 * 1024
    assert tune_effort((64, 512), 8, rounds=3) == tune_effort((64, 512), 8, rounds=1) * 3


def test_a_search_takes_more_than_rounding() -> None:
    plain, searched = (INT4.effort(SHAPE, searched=searched) for searched in (False, True))
    assert searched.elements > 4 * plain.elements > 0
    assert scale_effort(SHAPE, INT4).elements > 40 * plain.elements
    assert clip_effort(SHAPE, INT4).elements > searched.elements + 11 * plain.elements
