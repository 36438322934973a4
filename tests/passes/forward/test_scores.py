"""KL divergence, agreement and acceptance, against numbers that were worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from compress.passes.forward.scores import accepted, divergences


def test_two_distributions_by_hand() -> None:
    q, p = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]), torch.tensor([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]])
    divergence, agreement = divergences(q.log(), p.log())
    assert float(divergence[0]) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-6)
    assert float(divergence[1]) == 0
    assert agreement.tolist() == [False, True]


def test_what_is_accepted_by_hand_and_by_speculative_sampling() -> None:
    q, p = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]), torch.tensor([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]])
    torch.testing.assert_close(accepted(q.log(), p.log()), torch.tensor([0.75, 1.0]))
    generator = torch.Generator().manual_seed(0)
    drafted = torch.multinomial(p[0], 20_000, replacement=True, generator=generator)
    taken = torch.rand(20_000, generator=generator) < (q[0] / p[0])[drafted]
    assert float(taken.float().mean()) == pytest.approx(0.75, abs=0.02)


def test_the_reference_comes_first() -> None:
    q, p = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    there, back = float(divergences(q.clone(), p)[0]), float(divergences(p.clone(), q)[0])
    assert there == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-5)
    assert back == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5), rel=1e-5)
