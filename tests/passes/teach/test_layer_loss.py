"""What a layer is to learn, against the loss written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.passes.forward.hidden import HiddenStates
from compress.passes.model.sequences import Sequences
from compress.passes.teach.layer_loss import Given, LayerLoss
from compress.passes.train.examples import Examples

COUNT, LENGTH, WIDTH = 5, 7, 6


def states(folder: Path, boundary: int, seed: int) -> tuple[HiddenStates, Tensor]:
    """Hidden states on disk, and the same in memory."""
    values = torch.randn(COUNT, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    hidden = HiddenStates(folder, LENGTH, WIDTH, COUNT)
    with hidden.write(boundary) as file:
        hidden.append(file, values)
    return hidden, values


@pytest.mark.parametrize("held", [True, False])
def test_any_sequences_are_given_held_or_read(tmp_path: Path, held: bool) -> None:
    hidden, values = states(tmp_path, 3, 0)
    given = Given(hidden, 3, COUNT, held)
    assert torch.equal(given(torch.tensor([4, 0, 4])), values[[4, 0, 4]])
    hidden.keep_only(9)
    if held:
        assert torch.equal(given(torch.tensor([1])), values[1:2])


def test_it_is_the_relative_error_of_scored_tokens(tmp_path: Path) -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    (x, inputs), (t, targets) = states(tmp_path / "x", 0, 0), states(tmp_path / "t", 1, 1)
    mask = torch.arange(LENGTH) < torch.tensor([[7], [4], [5]])
    rows = torch.tensor([2, 0, 1])
    examples = Examples(Sequences(torch.zeros(3, LENGTH, dtype=torch.int64), mask))
    loss = LayerLoss(
        layer,
        lambda module, hidden, sequences: module(hidden),
        Given(x, 0, COUNT, True),
        Given(t, 1, COUNT, False),
        lambda rows: rows + 2,
        "fp32",
    )
    expected = torch.zeros(())
    for number, row in enumerate(rows.tolist()):
        for token in range(int(mask[number].sum()) - 1):
            y, wanted = layer(inputs[row + 2, token]), targets[row + 2, token]
            expected = expected + (y - wanted).square().sum() / wanted.square().sum()
    found = loss(examples, rows)
    torch.testing.assert_close(found, expected)
    found.backward()
    found_gradient = layer.weight.grad
    (wanted_gradient,) = torch.autograd.grad(expected, [layer.weight])
    assert found_gradient is not None
    torch.testing.assert_close(found_gradient, wanted_gradient)
