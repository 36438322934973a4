"""Casting tensors to the type that a file holds."""

import pytest
import torch

from compress.formats.errors import RefusedError
from compress.formats.views.casting import cast


def test_a_cast_that_would_overflow_is_refused_by_name():
    assert cast("t", torch.tensor([65504.0]), "float16").tolist() == [65504.0]
    with pytest.raises(RefusedError, match="tensor t holds 70000"):
        cast("t", torch.tensor([1.0, -70000.0]), "float16")
    assert cast("t", torch.tensor([70000.0]), "bfloat16").dtype == torch.bfloat16
