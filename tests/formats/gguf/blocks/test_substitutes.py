"""Substitutes, against llama.cpp's table: what it takes where super-blocks of 256 do not divide a row."""

from __future__ import annotations

from collections import Counter

import pytest

from compress.formats.gguf.blocks.substitutes import Substitute, fitting, substitutes_told


@pytest.mark.parametrize(
    ("kind", "substitute"),
    [("q2_k", "q4_0"), ("q3_k", "q4_0"), ("q4_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q8_0"), ("iq4_xs", "iq4_nl"),
     ("tq1_0", "q4_0"), ("tq2_0", "q4_0"), ("q4_1", "q4_1"), ("mxfp4", "mxfp4")],
)  # fmt: skip
def test_substitutes(kind: str, substitute: str) -> None:
    assert (fitting(kind, 512), fitting(kind, 576)) == (kind, substitute)
    if kind != substitute:
        assert fitting(kind, 48) == "f16"


def test_what_is_said_counts() -> None:
    counts = Counter([Substitute("q4_k", "q5_0", 576)] * 3 + [Substitute("q6_k", "q8_0", 576)])
    assert substitutes_told(counts) == (
        "3 matrices in q5_0, not q4_k: 576 columns are no super-blocks (5.5 bits per weight, not 4.5)",
        "1 matrix in q8_0, not q6_k: 576 columns are no super-blocks (8.5 bits per weight, not 6.56)",
    )
