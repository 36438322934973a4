"""A change of one weight: what it computes with, and cut by rows."""

from __future__ import annotations

import torch

from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize
from compress.passes.core.change import Change, stacked

WEIGHT = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
FORMAT = IntFormat(4, 16)


def test_values_are_what_the_weight_computes_with() -> None:
    quantized = quantize(WEIGHT, FORMAT, FORMAT.fit(WEIGHT))
    assert torch.equal(Change(quantized).values, quantized.dequantize())
    assert Change(WEIGHT).values is WEIGHT


def test_rows_of_a_quantized_change_decode_to_those_rows() -> None:
    quantized = quantize(WEIGHT, FORMAT, FORMAT.fit(WEIGHT))
    scale = torch.ones(1)
    whole = Change(quantized, WEIGHT * 2, {"input_scale": scale}, True, ("other",), {"damp": 0.1})
    part = whole.rows(slice(2, 5))
    assert isinstance(part.weight, QTensor) and part.weight.shape == (3, 32)
    assert torch.equal(part.values, whole.values[2:5])
    assert part.target is not None and torch.equal(part.target, WEIGHT[2:5] * 2)
    assert part.tensors["input_scale"] is scale and part.unreached
    assert (part.unmeasured, part.notes) == (("other",), {"damp": 0.1})


def test_rows_of_a_dense_change() -> None:
    assert torch.equal(Change(WEIGHT).rows(slice(0, 1)).values, WEIGHT[:1])
    assert Change(WEIGHT).rows(slice(0, 1)).target is None


def test_stacked_is_what_rows_cut() -> None:
    quantized = quantize(WEIGHT, FORMAT, FORMAT.fit(WEIGHT))
    for whole in (Change(quantized, WEIGHT * 2, {"input_scale": torch.ones(1)}, True), Change(WEIGHT)):
        parts = [whole.rows(slice(0, 1)), whole.rows(slice(1, 4)), whole.rows(slice(4, 6))]
        again = stacked(parts)
        assert type(again.weight) is type(whole.weight) and torch.equal(again.values, whole.values)
        assert (again.target is None) == (whole.target is None)
        assert again.target is None or torch.equal(again.target, WEIGHT * 2)
        assert again.tensors == whole.tensors and again.unreached == whole.unreached
    assert stacked([whole]) is whole


def test_stacked_says_the_worst_that_its_parts_say() -> None:
    notes = [{"damp": 0.1, "fallback": ""}, {"damp": 0.01, "fallback": "rtn"}]
    assert stacked([Change(WEIGHT, notes=each) for each in notes]).notes == {"damp": 0.1, "fallback": "rtn"}


def test_masks_are_cut_and_joined_with_their_rows() -> None:
    mask = WEIGHT > 0
    whole = Change(WEIGHT * mask, mask=mask)
    parts = [whole.rows(slice(0, 2)), whole.rows(slice(2, len(WEIGHT)))]
    assert parts[0].mask is not None and torch.equal(parts[0].mask, mask[:2])
    joined = stacked(parts)
    assert joined.mask is not None and torch.equal(joined.mask, mask) and torch.equal(joined.values, whole.values)
