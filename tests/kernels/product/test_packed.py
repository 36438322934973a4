"""Products with packed codes against float64, levels of every number format against its own values, the layer."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.product import packed as module
from compress.kernels.product.coded_linear import CodedLinear
from compress.kernels.product.levels import levels_of
from compress.kernels.product.packed import Few, int4, int8, packed
from compress.kernels.qtensor import NumberFormat, QTensor

EVEN = [
    IntFormat(4, 32),
    IntFormat(4, 64, "integer"),
    IntFormat(3, 128, "real"),
    IntFormat(2, 32, "integer", "float32"),
    KAffineFormat("q4_k"),
]
UNEVEN = [
    *(IntFormat(8, -1), IntFormat(8, 64), CodebookFormat("nf4", 64), CodebookFormat("nf4", 64, True)),
    *(FloatFormat("channel"), FloatFormat("tensor"), FloatFormat("block")),
    *(KAffineFormat("q5_k"), KScaledFormat("q6_k"), Float4Format("nvfp4"), RowInt8Format()),
]


def quantized(number_format: NumberFormat, rows: int = 48, columns: int = 512) -> QTensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))
    return number_format.search(weight * torch.linspace(0.1, 3, rows).unsqueeze(1))


@pytest.mark.parametrize("number_format", [*EVEN, *UNEVEN], ids=lambda f: f.name)
def test_levels_say_what_codes_stand_for(number_format):
    weight = quantized(number_format)
    levels = levels_of(weight)
    assert levels is not None and levels.even == (levels.table[1] == 1)
    rows, columns = weight.shape
    codes = weight.codes.view(rows, levels.scale.shape[1], -1).int()
    values = levels.table[codes] * levels.scale.unsqueeze(2) + levels.minimum.unsqueeze(2)
    torch.testing.assert_close(values.view(rows, columns), weight.dequantize(), rtol=3e-7, atol=1e-6)


def test_groups_of_unequal_width_are_no_levels():
    assert levels_of(quantized(FloatFormat("block"), columns=192)) is None
    assert levels_of(quantized(FloatFormat("block"), columns=300)) is None


@pytest.mark.parametrize("number_format", [*EVEN, IntFormat(8, -1)], ids=lambda f: f.name)
def test_the_packed_product_is_that_of_the_values(number_format):
    weight = quantized(number_format)
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
    truth = x.double() @ weight.dequantize().double().T
    found = (int8 if number_format.levels > 16 else int4)(weight)(x)
    assert found.dtype == torch.float32 and found.shape == truth.shape
    # As bf16 rounds inputs, scales and results: 2⁻⁹ each.
    assert float((found - truth).norm() / truth.norm()) < 4e-3


@pytest.mark.parametrize("case", [
    quantized(IntFormat(4, 16)), quantized(IntFormat(4, 64), rows=40), quantized(IntFormat(8, 64)),
    quantized(IntFormat(8, -1, "integer")), quantized(CodebookFormat("nf4", 64)), quantized(IntFormat(4, 64)),
], ids=["group", "rows", "8 bits in groups", "8 bits, zeros", "uneven", "small"])  # fmt: skip
def test_what_torch_has_no_product_of_stays_dense(case, monkeypatch):
    monkeypatch.setattr(module, "_most_rows", lambda *_: 8)
    if case.format != IntFormat(4, 64):
        monkeypatch.setattr(module, "_LEAST", 0)
    assert packed(case) is None


def test_it_is_taken_where_it_is_quicker(monkeypatch):
    slow, quick = quantized(IntFormat(4, 64), rows=128), quantized(IntFormat(4, 64), rows=144)
    module._most_rows.cache_clear()
    monkeypatch.setattr(module, "_seconds", lambda products, x: len(products[0](x)) * next(times))
    times = iter([9, 10])  # packed, dense
    assert packed(slow) is None
    times = iter([1, 10, 9, 10])  # of 1 and 8 inputs
    few = packed(quick)
    assert few is not None and few.most == 1
    assert packed(quick).most == 1  # measured once
    module._most_rows.cache_clear()


def test_a_coded_linear_computes_what_the_dense_one_does(monkeypatch):
    weight, bias = quantized(IntFormat(4, 64)), torch.nn.Parameter(torch.linspace(-1, 1, 48), requires_grad=False)
    x = torch.randn(2, 3, 512, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.linear(x, weight.dequantize(), bias)
    layer = CodedLinear(weight, bias)
    assert torch.equal(layer(x), expected)
    assert CodedLinear(weight, None)(x.bfloat16()).dtype == torch.bfloat16
    few = Few(int4(weight), 5)
    monkeypatch.setattr("compress.kernels.product.coded_linear.packed", lambda _: few)
    layer = CodedLinear(weight, bias)
    assert torch.equal(layer(x), expected)  # six rows: one too many
    y = layer(x[:1])
    assert y.shape == (1, 3, 48) and not torch.equal(y, expected[:1])
    torch.testing.assert_close(y, expected[:1], rtol=0.02, atol=0.3)
