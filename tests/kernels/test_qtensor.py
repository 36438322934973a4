"""What every number format has from its base: guards, a search, codes that span columns."""

import pytest
import torch

from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize
from compress.kernels.solve.gptq import gptq_solve

WEIGHT = torch.linspace(-1, 1, 24).view(3, 8)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (WEIGHT[:, :7], "7 columns are no pairs"),
        (WEIGHT[0], r"holds matrices \[rows, columns\], not a tensor of shape \[8\]"),
        (WEIGHT[:0], "holds matrices"),
        (WEIGHT.where(WEIGHT < 1, torch.nan), "NaN or Inf"),
        (WEIGHT.where(WEIGHT < 1, torch.inf), "NaN or Inf"),
    ],
)
def test_fit_is_guarded_once_for_every_format(pairs, weight, said):
    with pytest.raises(ValueError, match=said):
        pairs.fit(weight)


def test_importance_comes_with_a_mean_of_one(pairs):
    pairs.fit(WEIGHT, torch.arange(8.0) * 1e30)
    assert float(pairs.asked.mean()) == pytest.approx(1)
    pairs.fit(WEIGHT, torch.zeros(8))
    assert not pairs.asked.any()
    pairs.fit(WEIGHT)
    assert pairs.asked is None


def test_codes_that_span_columns_keep_the_shape_of_the_weight(pairs):
    quantized = pairs.search(WEIGHT)
    assert quantized.codes.shape == (3, 4) and quantized.codes.dtype == torch.int16
    assert quantized.shape == (3, 8) and int(quantized.codes.max()) > 255
    torch.testing.assert_close(quantized.dequantize(), WEIGHT, rtol=0, atol=1 / 23)


def test_a_search_is_parameters_and_nearest_codes_unless_a_format_knows_better():
    importance = torch.rand(8)
    found = IntFormat(4, 4).search(WEIGHT, importance)
    expected = quantize(WEIGHT, IntFormat(4, 4), IntFormat(4, 4).fit(WEIGHT, importance))
    assert isinstance(found, QTensor) and torch.equal(found.codes, expected.codes)
    assert torch.equal(found.params["scale"], expected.params["scale"])


def test_most_formats_have_a_byte_for_every_weight():
    assert (IntFormat(4, 4).span, IntFormat(4, 4).codes_dtype) == (1, torch.uint8)


def test_gptq_refuses_codes_that_span_columns(pairs):
    with pytest.raises(ValueError, match="one code for 2 columns"):
        gptq_solve(WEIGHT, torch.eye(8), pairs)
