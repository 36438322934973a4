"""NaN and Inf in weights are found, and named."""

from dataclasses import replace

import pytest
import torch

from compress.formats.errors import InputError
from compress.formats.files.finite import check_finite, finite
from compress.kernels.numbers.int import IntFormat


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_named_with_its_place(dtype, value):
    tensor = torch.zeros(3, 4, dtype=dtype)
    assert finite(tensor)
    tensor[2, 1] = value
    assert not finite(tensor)
    with pytest.raises(InputError, match=rf"tensor up holds {value} at index \[2, 1\]"):
        check_finite("up", tensor)


@pytest.mark.parametrize("tensor", [torch.zeros(0, 4), torch.ones(2, dtype=torch.int64), torch.ones(2).bool()])
def test_what_holds_no_floats_is_finite(tensor):
    assert finite(tensor)
    check_finite("ids", tensor)


def test_parameters_of_a_quantized_tensor_are_looked_at():
    quantized = IntFormat(4, 2).search(torch.ones(2, 4))
    check_finite("up", quantized)
    scale = quantized.params["scale"].clone()
    scale[1, 0] = torch.inf
    with pytest.raises(InputError, match=r"up \(scale\) holds inf at index \[1, 0\]"):
        check_finite("up", replace(quantized, params={"scale": scale}))
