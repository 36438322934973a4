"""Which sequences a step sees."""

from __future__ import annotations

import torch

from compress.passes.train.order import rows_of


def test_every_epoch_has_every_row_once() -> None:
    drawn = torch.cat([rows_of(step, seed=3, count=10, batch=4) for step in range(10)])
    epochs = drawn.view(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1


def test_a_step_is_the_same_whatever_came_before_and_the_seed_decides() -> None:
    assert rows_of(7, seed=1, count=9, batch=4).tolist() == rows_of(7, seed=1, count=9, batch=4).tolist()
    assert any(
        rows_of(step, seed=1, count=50, batch=4).tolist() != rows_of(step, seed=2, count=50, batch=4).tolist()
        for step in range(3)
    )


def test_a_batch_larger_than_the_data_takes_rows_again() -> None:
    assert sorted(rows_of(0, seed=0, count=2, batch=6).tolist()) == [0, 0, 0, 1, 1, 1]
