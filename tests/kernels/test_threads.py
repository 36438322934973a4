"""Small operators use one thread, and what comes after uses as many as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import Params
from compress.kernels.solve.gptq import gptq_solve
from compress.kernels.solve.tune import tune
from compress.kernels.threads import single_thread

THREADS: list[int] = []
"""How many threads there were, whenever a column was rounded."""


@dataclass(frozen=True)
class Watched(IntFormat):
    """Notes the threads where a single column is rounded."""

    def round(self, weight: Tensor, expanded: Params) -> Tensor:
        if weight.ndim == 1:
            THREADS.append(torch.get_num_threads())
        return super().round(weight, expanded)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    THREADS.clear()


def test_one_thread_within_and_all_of_them_after() -> None:
    with single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_all_threads_are_back_after_an_error() -> None:
    with pytest.raises(ValueError), single_thread():
        raise ValueError
    assert torch.get_num_threads() == 2


def solve(weight: Tensor, hessian: Tensor) -> None:
    gptq_solve(weight, hessian, Watched(4, 32))


def solve_and_tune(weight: Tensor, hessian: Tensor) -> None:
    solved, _ = gptq_solve(weight, hessian, Watched(4, 32))
    THREADS.clear()
    tune(weight, hessian, solved, rounds=1)


@pytest.mark.parametrize("loop", [solve, solve_and_tune])
def test_columns_are_visited_on_one_thread(loop: Callable[[Tensor, Tensor], None]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 96, generator=generator)
    loop(torch.randn(8, 96, generator=generator), inputs.T @ inputs)
    assert THREADS == [1] * 96
    assert torch.get_num_threads() == 2
