"""Weights with the Hessian of inputs, for tests of solvers."""

import torch
from torch import Tensor


def problem(rows: int, columns: int, tokens: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns] and the Hessian of strongly correlated inputs of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator) ** 3
    x = torch.randn(tokens, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator) * 0.05, x.T @ x
