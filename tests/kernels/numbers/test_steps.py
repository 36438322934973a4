"""The search among bounds against torch's own, on the bounds and beside them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.kernels.numbers.steps import Steps, looked_up

INF = float("inf")


def asked(bounds, count=20000):
    """Numbers around and on the bounds, more than are searched for one by one."""
    spread = float(bounds[-1] - bounds[0])
    beside = [torch.nextafter(bounds, torch.full_like(bounds, far)) for far in (-INF, INF)]
    edges = torch.tensor([0.0, -0.0, INF, -INF, 1e-45, -1e-45, 3.4e38, -3.4e38])
    random = torch.rand(count, generator=torch.Generator().manual_seed(0)) * 2 * spread + bounds[0] - spread / 2
    return torch.cat([bounds, *beside, edges, random])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=32, unique=True))
def test_it_counts_the_bounds_below(numbers):
    bounds = torch.tensor(sorted(numbers))
    # Bins must not become more than memory holds: tables of number formats are no finer than this.
    if float(bounds.diff().min()) > 1e-3:
        x = asked(bounds)
        assert torch.equal(Steps(bounds).below(x), torch.bucketize(x, bounds).float())


@pytest.mark.parametrize("shape", [(5,), (3, 7), (90, 8, 16), (20000,)])
def test_the_shape_is_that_of_the_numbers_be_they_few_or_many(shape):
    bounds = torch.tensor([-1.0, 0.0, 0.25, 3.0])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = Steps(bounds).below(x)
    assert found.dtype == torch.float32 and torch.equal(found, torch.bucketize(x, bounds).float())
    assert torch.equal(x, torch.randn(shape, generator=torch.Generator().manual_seed(1)))  # nothing is written over


def test_nothing_is_no_reason_to_fail():
    found = Steps(torch.tensor([-1.0, 1.0])).below(torch.full((5000,), torch.nan))
    assert bool(((found >= 0) & (found <= 2)).all())


def test_a_table_is_looked_up_in_any_shape():
    index = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]])
    assert looked_up(torch.tensor([0.5, -1.0, 2.0, -0.0]), index).tolist() == [[[-0.0, 0.5], [-1.0, -1.0]]]
