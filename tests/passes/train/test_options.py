"""What options of training mean."""

from __future__ import annotations

import math

import pytest

from compress.passes.train.options import LoraOptions, TrainOptions


def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine() -> None:
    options = TrainOptions(steps=100, warmup=0.1)
    assert [options.rate(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert options.rate(55) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert 0 < options.rate(99) < 1e-3
    rates = [options.rate(step) for step in range(9, 100)]
    assert rates == sorted(rates, reverse=True)


def test_without_warm_up_it_begins_at_the_top() -> None:
    assert TrainOptions(steps=1, warmup=0).rate(0) == 1.0


def test_the_held_out_loss_is_looked_at_ten_times_unless_told() -> None:
    assert TrainOptions(steps=200).interval == 20
    assert TrainOptions(steps=3).interval == 1
    assert TrainOptions(steps=200, measure_every=7).interval == 7


def test_adapters_are_described_only_where_they_are_made() -> None:
    assert TrainOptions(train="lora", lora=LoraOptions(rank=4)).lora.rank == 4
    with pytest.raises(ValueError, match="say train: lora"):
        TrainOptions(lora=LoraOptions(rank=4))
