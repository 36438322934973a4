"""The pretended GPU of the tests refuses what a real one refuses, and computes the rest."""

from __future__ import annotations

from collections.abc import Callable

import pretended
import pytest
import torch


@pytest.mark.parametrize("mistake", [
    lambda x: x + torch.ones(4),
    lambda x: x.numpy(),
    lambda x: torch.ones(4)[x.long()],
    lambda x: torch.randn(4, device=x.device, generator=torch.Generator()),
    lambda x: torch.nn.functional.linear(x, torch.ones(4, 4)),
])  # fmt: skip
def test_the_pretended_gpu_refuses_what_a_real_one_refuses(mistake: Callable[[torch.Tensor], object]) -> None:
    with pretended.gpu() as device, pytest.raises((RuntimeError, TypeError)):
        mistake(torch.ones(4, device=device))


def test_the_pretended_gpu_computes() -> None:
    with pretended.gpu() as device:
        x = torch.zeros(2, 3, device=device)
        x[:, 1:].add_(2)
        assert str(x.device) == f"{device}:0"
        assert float(x.sum()) == 8
        assert x.cpu().tolist() == [[0, 2, 2], [0, 2, 2]]
