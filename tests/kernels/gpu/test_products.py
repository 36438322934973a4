"""Which products with codes have a kernel."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.numbers.int import IntFormat
from compress.kernels.product.stack import stacked
from compress.kernels.product.words import words_of


def test_what_a_product_with_codes_cannot_do_it_does_not_take():
    pytest.importorskip("triton")
    from compress.kernels.gpu import decode_codes, multiply_few, multiply_many

    words = words_of(IntFormat(4, 32).search(torch.randn(16, 64)))
    assert words is not None
    half = torch.zeros(65, 128, dtype=torch.float16)
    for takes in (multiply_few.takes, multiply_many.takes):
        assert takes(half[:64, :64], words) and takes(half[:1, :64].bfloat16(), words)
        assert not takes(half[:, ::2], words)
        assert not takes(half[:, :64].float(), words)
        assert not takes(half[:0, :64], words)
    fine = words_of(IntFormat(4, 16).search(torch.randn(16, 64)))
    assert fine is not None and multiply_many.takes(half[:1, :64], fine) and multiply_few.takes(half[:1, :64], fine)
    assert multiply_many.takes(half[:, :64], words) and not multiply_few.takes(half[:, :64], words)
    assert decode_codes.takes(words, torch.bfloat16) and not decode_codes.takes(words, torch.float64)


def test_what_the_product_with_experts_cannot_do_it_does_not_take():
    pytest.importorskip("triton")
    from compress.kernels.gpu.multiply_experts import takes

    words = words_of(IntFormat(4, 32).search(torch.randn(16, 64)))
    assert words is not None
    stack, ends, half = stacked([words, words]), torch.tensor([1, 3]).int(), torch.zeros(3, 128, dtype=torch.float16)
    assert stack is not None and takes(half[:, :64], stack, ends) and takes(half[:, :64].bfloat16(), stack, ends)
    assert not takes(half[:, ::2], stack, ends)
    assert not takes(half[:, :64].float(), stack, ends)
    assert not takes(half[:0, :64], stack, ends)
    assert not takes(half[:, :64], stack, ends.long())
