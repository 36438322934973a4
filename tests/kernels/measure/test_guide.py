"""What tokens count for: mean squares by parts of rows, on average 1."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.measure.guide import part_energies, token_weights

GRADIENT = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_energies_are_mean_squares_of_neighbouring_rows(parts: int) -> None:
    split = GRADIENT.numpy()
    expected = [[float((part**2).mean()) for part in _cut(row.tolist(), parts)] for row in torch.tensor(split)]
    torch.testing.assert_close(part_energies(GRADIENT.float(), parts), torch.tensor(expected))


def _cut(row: list[float], parts: int) -> list[torch.Tensor]:
    """As even as can be, longer ones first."""
    sizes = [len(row) // parts + (number < len(row) % parts) for number in range(parts)]
    starts = [sum(sizes[:number]) for number in range(parts)]
    return [torch.tensor(row[start : start + size]) for start, size in zip(starts, sizes)]


def test_there_are_no_more_parts_than_rows() -> None:
    torch.testing.assert_close(part_energies(GRADIENT.float()[:, :2], 4), GRADIENT.float()[:, :2].square())


def test_weights_are_in_proportion_and_on_average_one() -> None:
    energies = torch.tensor([[1e-12, 4.0], [3e-12, 4.0], [0.0, 1.0], [7.0, 7.0]])
    reached = torch.tensor([True, True, True, False])
    expected = torch.tensor([[0.75, 4 / 3], [2.25, 4 / 3], [0.0, 1 / 3], [1.0, 1.0]])
    weights = token_weights(energies, reached)
    assert weights.dtype == torch.float16
    torch.testing.assert_close(weights.float(), expected, rtol=1e-3, atol=1e-6)


def test_where_nothing_is_known_tokens_count_alike() -> None:
    energies = torch.zeros(3, 2)
    energies[0, 1] = 3.0
    assert token_weights(energies, torch.ones(3, dtype=torch.bool))[:, 0].tolist() == [1, 1, 1]
    assert token_weights(energies, torch.zeros(3, dtype=torch.bool)).tolist() == [[1, 1]] * 3
    assert bool(token_weights(torch.eye(1, 100_000).T, torch.ones(100_000, dtype=torch.bool)).isfinite().all())
