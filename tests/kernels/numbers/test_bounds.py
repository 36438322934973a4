"""Where real parameters may go, at the edges of what their types hold."""

import math

import pytest
import torch

from compress.kernels.numbers.bounds import held, sign_kept, smallest

INF = math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_a_type_cannot_hold_is_its_largest_number(dtype):
    most = torch.finfo(dtype).max
    assert held(torch.tensor([-INF, -1.0, 0.5, 3.4e38, INF]), dtype)[[0, 1, 2, 4]].tolist() == [-most, -1, 0.5, most]
    assert held(torch.tensor([3.4e38]), dtype).isfinite().all() and held(torch.tensor([math.nan]), dtype).isnan().all()


def test_a_half_is_not_rounded_up_to_infinity():
    assert held(torch.tensor([65519.0, 65521.0]), torch.float16).tolist() == [65504, 65504]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nothing_lies_between_zero_and_the_smallest(dtype):
    least = torch.tensor(smallest(dtype), dtype=dtype)
    assert float(least) == smallest(dtype) > 0 and torch.nextafter(least, torch.zeros_like(least)) == 0


def test_signs_stay_and_zero_is_not_reached():
    before = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    real = torch.tensor([1.0, 0.0, -1.0, -1.0, 0.0, 1.0])
    assert sign_kept(real, before, 0.25).tolist() == [1, 0.25, 0.25, -1, -0.25, -0.25]


def test_what_was_nearer_to_zero_may_stay_so_near():
    before = torch.tensor([0.125, 0.0, -0.125])
    assert sign_kept(before, before, 0.25).tolist() == before.tolist()
    assert sign_kept(torch.tensor([-1.0, -1.0, 1.0]), before, 0.25).tolist() == before.tolist()
