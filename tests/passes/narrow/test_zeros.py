"""What a plan knows of zeros: what may be pruned, and what of it once more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compress.formats.base import ModelSpec, TensorSpec, Zeros
from compress.formats.errors import RefusedError
from compress.kernels.numbers.int import IntFormat
from compress.passes.narrow.zeros import counts, with_zeros

MODEL = ModelSpec({}, {"x.weight": TensorSpec((8, 12), "float32")})
HALF = Zeros(0.5)
PATTERN = Zeros(0.5, "2:4")


def test_zeros_are_noted_beside_those_of_others() -> None:
    before = replace(MODEL, pruned={"y": HALF})
    assert with_zeros(before, {"x": PATTERN}) == replace(MODEL, pruned={"y": HALF, "x": PATTERN})
    assert counts("4:8") == (4, 8)


def test_more_zeros_may_come_where_some_are() -> None:
    more = Zeros(0.7, corrected=True)
    assert with_zeros(replace(MODEL, pruned={"x": HALF}), {"x": more}).pruned == {"x": more}


@pytest.mark.parametrize(
    ("before", "asked", "said"),
    [
        (HALF, HALF, r"pruned by an earlier pass \(50 %\), and its zeros stay"),
        (PATTERN, Zeros(0.7), r"an earlier pass \(2:4\)"),
        (Zeros(0.2), PATTERN, r"an earlier pass \(20 %\)"),
        (Zeros(0.5, corrected=True), Zeros(0.7, corrected=True), "twice"),
        (None, Zeros(0.5, "4:8"), "8 does not divide the 12 inputs of x"),
    ],
)
def test_what_cannot_be_is_refused(before: Zeros | None, asked: Zeros, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        with_zeros(replace(MODEL, pruned={"x": before} if before else {}), {"x": asked})


def test_what_is_quantized_is_not_pruned() -> None:
    quantized = replace(MODEL, tensors={"x.weight": TensorSpec((8, 12), "float32", IntFormat(4, 4))})
    with pytest.raises(RefusedError, match="quantized by an earlier pass"):
        with_zeros(quantized, {"x": HALF})
