"""Hidden states toward a teacher's: torch's mean squared error is the judge."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from compress.formats.errors import UsageError
from compress.passes.teach.features import FeatureLoss, layer_pairs

GENERATOR = torch.Generator().manual_seed(7)
WIDE = [torch.randn(3, 5, 8, dtype=torch.float64, generator=GENERATOR) for _ in range(5)]
SAME = [torch.randn(3, 5, 8, dtype=torch.float64, generator=GENERATOR) for _ in range(3)]
NARROW = [torch.randn(3, 5, 6, dtype=torch.float64, generator=GENERATOR) for _ in range(3)]


def test_it_is_the_squared_error_by_the_teachers_energy_over_pairs() -> None:
    found = FeatureLoss([(1, 2), (2, 4)], 8, 8)(SAME, WIDE)
    energy = [functional.mse_loss(WIDE[i], torch.zeros_like(WIDE[i]), reduction="none").mean(-1) for i in (2, 4)]
    errors = [functional.mse_loss(SAME[i], WIDE[j], reduction="none").mean(-1) for i, j in ((1, 2), (2, 4))]
    torch.testing.assert_close(found, (errors[0] / energy[0] + errors[1] / energy[1]) / 2)
    assert found.shape == (3, 5)


def test_the_size_of_a_hidden_state_does_not_weigh() -> None:
    loss = FeatureLoss([(1, 1)], 8, 8)
    large = loss([1000 * x for x in SAME], [1000 * x for x in WIDE])
    torch.testing.assert_close(large, loss(SAME, WIDE))


def test_a_teacher_reached_and_one_that_is_silent_give_finite_gradients() -> None:
    student = torch.zeros(1, 2, 8, requires_grad=True)
    FeatureLoss([(0, 0)], 8, 8)([student], [torch.zeros(1, 2, 8)]).sum().backward()
    assert student.grad is not None
    assert bool((student.grad == 0).all())


def test_low_precision_is_compared_in_fp32() -> None:
    states = [300 * torch.ones(1, 1, 8, dtype=torch.float16)]
    found = FeatureLoss([(0, 0)], 8, 8)(states, [2 * states[0]])
    torch.testing.assert_close(found, torch.full((1, 1), 0.25))


def test_other_widths_learn_a_projection_of_their_own_for_every_pair() -> None:
    loss = FeatureLoss([(1, 2), (2, 4)], 6, 8, seed=3).double()
    assert [tuple(parameter.shape) for parameter in loss.parameters()] == [(8, 6), (8, 6)]
    assert not torch.equal(*loss.parameters())
    again = FeatureLoss([(1, 2), (2, 4)], 6, 8, seed=3).double()
    assert all(torch.equal(a, b) for a, b in zip(loss.parameters(), again.parameters()))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        losses.append(loss(NARROW, WIDE).mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("width", "teacher_width"), [(6, 8), (8, 6)])
def test_a_projection_begins_as_a_rotation(width: int, teacher_width: int) -> None:
    (weight,) = FeatureLoss([(0, 0)], width, teacher_width).parameters()
    narrow = weight.T @ weight if width < teacher_width else weight @ weight.T
    torch.testing.assert_close(narrow.detach(), torch.eye(6))


def test_one_width_has_nothing_to_learn() -> None:
    loss: nn.Module = FeatureLoss([(0, 0)], 8, 8)
    assert list(loss.parameters()) == []


def test_layers_are_spread_evenly_and_the_last_follows_the_last() -> None:
    assert layer_pairs(3, 3) == [(1, 1), (2, 2), (3, 3)]
    assert layer_pairs(4, 12) == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert layer_pairs(3, 4) == [(1, 1), (2, 3), (3, 4)]
    assert layer_pairs(6, 2)[0] == (1, 1)
    assert layer_pairs(6, 2)[-1] == (6, 2)


def test_chosen_layers_are_taken_as_they_are() -> None:
    assert layer_pairs(4, 12, {4: 12, 2: 7}) == [(2, 7), (4, 12)]


@pytest.mark.parametrize(
    ("chosen", "message"), [({5: 1}, "the model has no layer 5"), ({1: 0}, "the teacher has no layer 0")]
)
def test_a_layer_that_is_not_there(chosen: dict[int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        layer_pairs(4, 12, chosen)
    assert "1 to" in caught.value.hint
