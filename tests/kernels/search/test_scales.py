"""Of scales that are tried, each element gets the one that errs least, whatever the others get."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.kernels.search.scales import least_error

WANTED = torch.tensor([[0.9, 2.2], [-3.0, 1.6]])


def error(scale: Tensor) -> Tensor:
    return (scale.float() - WANTED).abs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_every_element_has_its_own(dtype: torch.dtype) -> None:
    found = least_error((torch.full((2, 2), value, dtype=dtype) for value in (1, 0, 2, 3)), error)
    assert found.dtype == dtype
    assert found.tolist() == [[1, 2], [0, 2]]


def test_of_equals_it_is_the_first() -> None:
    scales = [torch.full((2, 2), value) for value in (5.0, 4.0, 6.0)]
    assert torch.equal(least_error(scales, lambda scale: torch.zeros(2, 2)), scales[0])


def test_each_is_tried_once() -> None:
    tried: list[float] = []

    def counted(scale: Tensor) -> Tensor:
        tried.append(float(scale[0, 0]))
        return error(scale)

    least_error([torch.full((2, 2), value) for value in (1.0, 2.0, 3.0)], counted)
    assert tried == [1, 2, 3]
