"""Codes in words come out as they went in, whatever their width; the product's reference is that of the values."""

from __future__ import annotations

import pretended
import pytest
import torch

from compress.kernels.fallbacks import counting
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.product.coded_linear import CodedLinear
from compress.kernels.product.multiply_codes import multiply_codes
from compress.kernels.product.words import words_of

WEIGHT = torch.randn(70, 768, generator=torch.Generator().manual_seed(0))
HELD = [
    *(IntFormat(bits, 64, "integer") for bits in range(2, 9)),
    *(IntFormat(4, -1), IntFormat(4, 256), IntFormat(3, 32, "real"), IntFormat(8, 128, "middle", "float32")),
    *(CodebookFormat("nf4", 64, True), FloatFormat(), FloatFormat("block"), KAffineFormat("q5_k")),
    *(IntFormat(4, 16), KScaledFormat("q6_k"), Float4Format("nvfp4")),
]


@pytest.mark.parametrize("number_format", HELD, ids=lambda f: f.name)
def test_words_hold_what_codes_stand_for(number_format):
    weight = number_format.search(WEIGHT)
    words = words_of(weight)
    assert words is not None
    torch.testing.assert_close(words.values(), weight.dequantize(), rtol=3e-7, atol=1e-6)
    x = torch.randn(2, 3, 768)
    assert torch.equal(multiply_codes(x, words), torch.nn.functional.linear(x, words.values()))


def test_a_word_holds_columns_that_lie_32_apart():
    number_format, codes = IntFormat(4, -1), torch.zeros(64, 256, dtype=torch.uint8)
    codes[5, [3, 35, 227]] = torch.tensor([1, 2, 15], dtype=torch.uint8)
    weight = number_format.search(torch.zeros(64, 256))
    words = words_of(type(weight)(number_format, codes, weight.params))
    assert words is not None and words.low.shape == (1, 1, 64, 32)
    assert int(words.low[0, 0, 5, 3]) & 0xFFFFFFFF == 1 | 2 << 4 | 15 << 28
    assert int(words.low.count_nonzero()) == 1


def test_scales_take_half_the_bytes_where_that_says_the_same():
    assert words_of(IntFormat(4, 64).search(WEIGHT)).scale.dtype == torch.float16
    assert words_of(IntFormat(4, 64, "middle", "float32").search(WEIGHT)).scale.dtype == torch.float32
    assert words_of(IntFormat(4, 64).search(WEIGHT)).minimum is None


UNHELD = [IntFormat(4, 8), IntFormat(4, 48), IntFormat(4, 192)]


@pytest.mark.parametrize("number_format", UNHELD, ids=lambda f: f.name)
def test_groups_that_no_step_divides_have_no_words(number_format):
    assert words_of(number_format.search(WEIGHT)) is None


def test_a_layer_on_a_gpu_holds_words():
    weight, x = IntFormat(4, 64).search(WEIGHT), torch.randn(70, 768)
    expected = torch.nn.functional.linear(x, words_of(weight).values())
    with pretended.gpu():
        layer = CodedLinear(weight.to(torch.device(pretended.NAME)), None)
        few, many = (layer(x[:count].to(pretended.NAME)).cpu() for count in (3, 70))
    torch.testing.assert_close(few, expected[:3], rtol=1e-5, atol=1e-4)
    assert torch.equal(many, expected)


def test_a_weight_that_no_kernel_reads_is_decoded_on_a_gpu_and_counted():
    weight, x = UNHELD[1].search(WEIGHT), torch.randn(3, 768)
    with pretended.gpu(), counting() as fallen:
        layer = CodedLinear(weight.to(torch.device(pretended.NAME)), None)
        found = layer(x.to(pretended.NAME)).cpu()
    assert list(fallen) == [
        f"products with {weight.format.name} decode it each time: no kernel reads codes of such groups"
    ]
    assert torch.equal(found, torch.nn.functional.linear(x, weight.dequantize()))
    with counting() as fallen:
        CodedLinear(weight, None)
    assert not any("decode it each time" in what for what in fallen)
